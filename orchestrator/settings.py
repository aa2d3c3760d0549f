"""Settings of the orchestrator."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, ServiceSettings
from mesh.protocol.summary import Grounded
from mesh.rpc.targets import with_default_port
from orchestrator.routing.backends.target import (
    DEFAULT_PORTS,
    EngineProtocol,
    parse_target,
    split_model,
)
from orchestrator.routing.policies.factory import PolicyName
from orchestrator.routing.policies.prefix_index import DEFAULT_MAX_BLOCKS
from orchestrator.text.format_choice import parse_choice
from orchestrator.text.tools.formats import AUTO, REASONING_FORMATS, TOOL_FORMATS

TOKENIZER_PORT = 50052
INFERENCE_PORT = DEFAULT_PORTS[EngineProtocol.WEIR]


class OrchestratorSettings(ServiceSettings):
    """Variables `ORCHESTRATOR_…` and flags; TOKENIZER_HOST and INFERENCE_HOST have no prefix."""

    model_config = SettingsConfigDict(env_prefix="ORCHESTRATOR_")

    listen: Address = Field("127.0.0.1:50051", description="Address of the gRPC server, HOST:PORT.")
    tokenizer_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="tokenizer_host",
        description="Tokenizer service, HOST or HOST:PORT (default port 50052). MODEL=HOST:PORT is "
        "for one model; separate several entries by commas.",
    )
    inference_host: str = Field(
        "127.0.0.1",
        min_length=1,
        validation_alias="inference_host",
        description="Inference engines, HOST or HOST:PORT (default port 50053), comma-separated; "
        "each address that a name resolves to is a replica. vllm+grpc://HOST:PORT and "
        "vllm+http://HOST:PORT are vLLM engines (default ports 50051 and 8000); vLLM's gRPC server "
        "is also recognised without a scheme. MODEL=HOST:PORT names the engines' model, which is "
        "then known without an engine as well: requests for it get 503 or wait, instead of 404.",
    )
    max_concurrent_requests: int = Field(
        64, ge=1, le=100_000, description="Maximum concurrent requests; more are refused."
    )
    max_outstanding_tokens: int = Field(
        1_000_000,
        ge=0,
        description="Maximum tokens (prompts plus max_tokens) of all concurrent requests; more are "
        "refused. 0: no limit.",
    )
    retrieval: Literal["", "index", "postgres", "opensearch", "searxng", "none"] = Field(
        "",
        description="Search backend: index, postgres, opensearch, searxng or none. Empty: index if "
        "ORCHESTRATOR_INDEX is set, else none.",
    )
    index: str = Field(
        "", description="Search index file; `python -m orchestrator.index` builds one."
    )
    postgres_url: SecretStr = Field(
        SecretStr(""), description="PostgreSQL database, postgresql://USER:PASSWORD@HOST/NAME."
    )
    postgres_table: str = Field(
        "documents",
        pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)?$",
        description="Table, NAME or SCHEMA.NAME, with columns title, url, text, unsafe, vector.",
    )
    postgres_language: str = Field(
        "english",
        min_length=1,
        description="Text search configuration of the column vector, or several separated by "
        "commas, whose matches are joined.",
    )
    postgres_embedding: str = Field(
        "",
        pattern=r"^([^\W\d]\w*)?$",
        description="Column of pgvector's type vector. Empty: PostgreSQL searches by words only.",
    )
    opensearch_url: SecretStr = Field(
        SecretStr(""), description="OpenSearch server, https://USER:PASSWORD@HOST:9200."
    )
    opensearch_index: str = Field(
        "documents", min_length=1, description="OpenSearch index, with fields title, url, text."
    )
    opensearch_embedding: str = Field(
        "",
        description="Field of OpenSearch's type knn_vector. Empty: OpenSearch searches by words "
        "only.",
    )
    searxng_url: SecretStr = Field(
        SecretStr(""), description="SearXNG server; its settings must allow the format json."
    )
    retrieval_timeout_seconds: float = Field(
        2.0, gt=0, description="Timeout of document retrieval; the answer then has no documents."
    )
    embedding_model: str = Field(
        "",
        description="Encoder of queries, the one that embedded the documents: searches by words "
        "and by vectors are fused. Empty: search by words only.",
    )
    embedding_url: str = Field(
        "",
        description="Server with OpenAI's /embeddings below this URL, https://HOST/v1. Empty: the "
        "encoder is a model of the engines in INFERENCE_HOST.",
    )
    embedding_api_key: SecretStr = Field(
        SecretStr(""), description="Bearer token for ORCHESTRATOR_EMBEDDING_URL."
    )
    embedding_timeout_seconds: float = Field(
        0.5,
        gt=0,
        description="Timeout of embedding a query and searching by its vector; the search then "
        "uses words only.",
    )
    embedding_query_prefix: str = Field(
        "",
        max_length=1000,
        description="Text before each query, if the encoder expects one, such as `query: ` (E5).",
    )
    rerank_url: str = Field(
        "",
        description="Server with Cohere's and Jina's /rerank below this URL, https://HOST/v1. "
        "Empty: the reranker is a model of the engines in INFERENCE_HOST.",
    )
    rerank_model: str = Field(
        "",
        description="Cross-encoder that sorts the best 30 passages of a search again. Empty: no "
        "reranking.",
    )
    rerank_api_key: SecretStr = Field(
        SecretStr(""), description="Bearer token for ORCHESTRATOR_RERANK_URL."
    )
    rerank_timeout_seconds: float = Field(
        1.0, gt=0, description="Timeout of reranking; the passages then keep their order."
    )
    rewrite_timeout_seconds: float = Field(
        2.0,
        gt=0,
        description="Timeout of the rewriting of a question by the model, for a search with a "
        "conversation; the question is then searched with the words of the earlier one.",
    )
    request_timeout_seconds: float = Field(
        600.0, gt=0, description="Deadline of requests that arrive without one."
    )
    search_model: str = Field(
        "",
        description="Model of searches that name none. Empty: the only model; with several, "
        "searches must name one.",
    )
    tool_parser: str = Field(
        AUTO,
        description="Format of a model's tool calls: auto (what its chat template shows), "
        f"{', '.join(TOOL_FORMATS)}, or none (calls stay text). MODEL=NAME is for one model; "
        "separate several entries by commas. Set it if the format of a template is not recognized.",
    )
    reasoning_parser: str = Field(
        AUTO,
        description="Tags of a model's reasoning: auto (what its chat template shows), "
        f"{', '.join(REASONING_FORMATS)}, or none (reasoning stays text). MODEL=NAME is for one "
        "model; separate several entries by commas.",
    )
    grounded: Grounded = Field(
        Grounded.QUOTE,
        description="How summaries are bound to the results. quote: each sentence is one of a "
        "passage, which suits models of any size; cite: the model writes the sentences, each with "
        "the number of a passage, and they are verified. Requests can choose.",
    )
    max_summary_characters: int = Field(
        20_000,
        ge=1,
        description="Maximum characters of a summary; longer ones are cut off.",
    )
    dns_refresh_seconds: float = Field(
        5.0,
        gt=0,
        description="Interval between DNS lookups of the engines and tokenizers while all known "
        "ones are ready; after a loss they are looked up every half second.",
    )
    hold_seconds: float = Field(
        10.0,
        ge=0,
        le=60,
        description="Seconds after the loss of the last ready engine of a model, or the last ready "
        "tokenizer, in which requests wait for the next one; later ones are refused at once. 0: "
        "always refused at once.",
    )

    wake_hold_seconds: float = Field(
        0.0,
        ge=0,
        le=3600,
        description="Longest wait of a request for a model of INFERENCE_HOST that has no ready "
        "engine, because it is scaled to zero; it begins again when an engine has an address. "
        "Later it gets 503. 0: requests get 503 at once.",
    )
    wake_max_held: int = Field(
        16,
        ge=1,
        le=100_000,
        description="Most requests that wait for models without a ready engine; more get 503 at "
        "once. They count as concurrent requests.",
    )
    wake_expected_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds from the first request for a model that is scaled to zero until an "
        "engine is ready, for Retry-After; replaced by the measured time after the first start.",
    )

    @field_validator("tool_parser")
    @classmethod
    def _check_tool_parser(cls, setting: str) -> str:
        parse_choice(setting, TOOL_FORMATS)
        return setting

    @field_validator("reasoning_parser")
    @classmethod
    def _check_reasoning_parser(cls, setting: str) -> str:
        parse_choice(setting, REASONING_FORMATS)
        return setting

    routing_policy: PolicyName = Field(
        PolicyName.PREFIX,
        description="Choice among equal engines. prefix: least work, counting the part of the "
        "prompt that is not in the engine's prefix cache; affinity: by the first 64 tokens; "
        "least_outstanding: fewest outstanding tokens; round_robin: in turn.",
    )
    prefix_index_blocks: int = Field(
        DEFAULT_MAX_BLOCKS,
        ge=1024,
        le=1 << 26,
        description="Blocks of 32 tokens that the index of the prefix policy knows over all "
        "engines, at about 150 bytes each. Raise it if the engines' caches together hold more.",
    )

    follow_kv_events: bool = Field(
        False,
        description="Correct the index of the prefix policy by the KV-cache events of engines that "
        "offer them (VllmEngine.SubscribeKvEvents). Turn on with several orchestrators, or if the "
        "engines' caches are small; a message for each step of an engine costs CPU on both sides.",
    )

    @field_validator("inference_host")
    @classmethod
    def _check_engines(cls, hosts: str) -> str:
        for host in hosts.split(","):
            parse_target(split_model(host)[1])
        return hosts

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
            # Without the value, which may contain a password.
            raise ValueError(f"{needed[kind][0]} must begin with {' or '.join(schemes[kind])}")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        for name, url, model in (
            ("EMBEDDING", self.embedding_url, self.embedding_model),
            ("RERANK", self.rerank_url, self.rerank_model),
        ):
            if url and not url.startswith(("http://", "https://")):
                raise ValueError(f"ORCHESTRATOR_{name}_URL must begin with http:// or https://")
            if url and not model:
                raise ValueError(f"ORCHESTRATOR_{name}_URL needs ORCHESTRATOR_{name}_MODEL")
        if self.embedding_model and self.retrieval_kind in ("searxng", "none"):
            raise ValueError(
                "ORCHESTRATOR_EMBEDDING_MODEL needs ORCHESTRATOR_RETRIEVAL index, postgres or "
                f"opensearch, given {self.retrieval_kind}"
            )
        return self

    @property
    def retrieval_kind(self) -> str:
        """The search backend, with the default resolved."""
        return self.retrieval or ("index" if self.index else "none")

    @property
    def tokenizer_targets(self) -> dict[str, str]:
        """Addresses of the tokenizers, by model; "" is for all other models.

        Each is HOST:PORT, or several separated by commas, which are replicas.
        """
        hosts: dict[str, list[str]] = {}
        for entry in self.tokenizer_host.split(","):
            model, _, host = entry.strip().rpartition("=")
            if host:
                hosts.setdefault(model, []).append(with_default_port(host, TOKENIZER_PORT))
        return {model: ",".join(each) for model, each in hosts.items()}

    @property
    def inference_targets(self) -> tuple[str, ...]:
        """Addresses of the engines, each HOST:PORT or SCHEME://HOST:PORT. Raises ValueError."""
        return tuple(dict.fromkeys(target for _, target in self._named_targets))

    @property
    def model_targets(self) -> dict[str, tuple[str, ...]]:
        """Addresses of the engines, each HOST:PORT, of the models that are known by name."""
        found: dict[str, tuple[str, ...]] = {}
        for model, target in self._named_targets:
            if model:
                found[model] = (*found.get(model, ()), parse_target(target).address)
        return found

    @property
    def _named_targets(self) -> list[tuple[str, str]]:
        entries = map(split_model, self.inference_host.split(","))
        return [(model, str(parse_target(target))) for model, target in entries if target]
