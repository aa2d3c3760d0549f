"""What the orchestrator can be told."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, ServiceSettings
from mesh.rpc.targets import balanced_target, with_default_port

TOKENIZER_PORT = 50052
INFERENCE_PORT = 50053


class OrchestratorSettings(ServiceSettings):
    """Variables `ORCHESTRATOR_…` and flags of the same names; the upstreams' have no prefix."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_")

    listen: Address = Field("127.0.0.1:50051", description="Address to serve on, HOST:PORT.")
    tokenizer_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="tokenizer_host",
        description="The tokenizer, HOST or HOST:PORT (default port 50052); for models with "
        "tokenizers of their own MODEL=HOST:PORT, several separated by commas.",
    )
    inference_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="inference_host",
        description="The engines: HOST or HOST:PORT (default port 50053), several separated by "
        "commas; each address that a name resolves to is a replica.",
    )
    max_concurrent_requests: int = Field(
        64, ge=1, le=100_000, description="Requests worked on at once; beyond it: refused."
    )
    max_outstanding_tokens: int = Field(
        1_000_000,
        ge=0,
        description="Tokens of prompts and completions worked on at once; beyond it: refused. "
        "0: no limit.",
    )
    retrieval: Literal["", "index", "postgres", "opensearch", "searxng", "none"] = Field(
        "",
        description="What is searched: index, postgres, opensearch, searxng or none; empty: the "
        "index if there is one.",
    )
    index: str = Field("", description="Search index made by `python -m orchestrator.index`.")
    postgres_url: SecretStr = Field(
        SecretStr(""), description="Database to search, postgresql://USER:PASSWORD@HOST/NAME."
    )
    postgres_table: str = Field(
        "documents",
        pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)?$",
        description="Table with title, url, text, unsafe and vector, NAME or SCHEMA.NAME.",
    )
    postgres_language: str = Field(
        "english", min_length=1, description="Text search configuration of its vector."
    )
    opensearch_url: SecretStr = Field(
        SecretStr(""), description="OpenSearch, https://USER:PASSWORD@HOST:9200."
    )
    opensearch_index: str = Field(
        "documents", min_length=1, description="Index of documents with title, url and text."
    )
    searxng_url: SecretStr = Field(
        SecretStr(""), description="SearXNG, which must allow the format json."
    )
    retrieval_timeout_seconds: float = Field(
        2.0, gt=0, description="Most time to look for documents; then the answer has none."
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="Most time for a request that comes without a deadline."
    )
    max_summary_characters: int = Field(
        20_000, ge=1, description="Longest summary, in characters; what is more is cut off."
    )
    dns_refresh_seconds: float = Field(
        5.0, gt=0, description="How often the engines' names are looked up."
    )

    @model_validator(mode="after")
    def _check_retrieval(self) -> Self:
        kind = self.retrieval
        needed = {
            "index": ("ORCHESTRATOR_INDEX", self.index),
            "postgres": ("ORCHESTRATOR_POSTGRES_URL", self.postgres_url.get_secret_value()),
            "opensearch": ("ORCHESTRATOR_OPENSEARCH_URL", self.opensearch_url.get_secret_value()),
            "searxng": ("ORCHESTRATOR_SEARXNG_URL", self.searxng_url.get_secret_value()),
        }
        if kind in needed and not needed[kind][1]:
            raise ValueError(f"ORCHESTRATOR_RETRIEVAL={kind} needs {needed[kind][0]}")
        schemes = {
            "postgres": ("postgresql://", "postgres://"),
            "opensearch": ("http://", "https://"),
            "searxng": ("http://", "https://"),
        }
        if kind in schemes and not needed[kind][1].startswith(schemes[kind]):
            # Not the value: it may have a password.
            raise ValueError(f"{needed[kind][0]} must begin with {' or '.join(schemes[kind])}")
        return self

    @property
    def retrieval_kind(self) -> str:
        """What is searched, spelled out."""
        return self.retrieval or ("index" if self.index else "none")

    @property
    def tokenizer_targets(self) -> dict[str, str]:
        """The tokenizers as gRPC targets, by model; "" stands for all other models.

        Several addresses for one model are replicas.
        """
        hosts: dict[str, list[str]] = {}
        for entry in self.tokenizer_host.split(","):
            model, _, host = entry.strip().rpartition("=")
            if host:
                hosts.setdefault(model, []).append(with_default_port(host, TOKENIZER_PORT))
        return {model: balanced_target(each) for model, each in hosts.items()}

    @property
    def inference_targets(self) -> tuple[str, ...]:
        """The engines' names, each HOST:PORT."""
        names = (name.strip() for name in self.inference_host.split(","))
        return tuple(with_default_port(name, INFERENCE_PORT) for name in names if name)
