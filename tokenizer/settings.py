"""What the tokenizer service can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Variables `TOKENIZER_*`; flags without the prefix."""

    model_config = SettingsConfigDict(env_prefix="TOKENIZER_")

    listen: Address = Field("127.0.0.1:50052", description="Address to serve on, HOST:PORT.")
    model: str = Field(
        "models/demo",
        min_length=1,
        description="Folder with tokenizer.json, or a hub id such as Qwen/Qwen3-0.6B.",
    )
    max_input_characters: int = Field(
        1_000_000,
        ge=1,
        le=16_000_000,
        description="Most characters of one Encode, tools and template variables included; "
        "most ids of one Decode.",
    )
    num_workers: int = Field(
        2, ge=1, le=256, description="Threads that render, encode and decode; one a core."
    )
    max_waiting: int = Field(
        256, ge=0, description="Most calls that wait for a thread; beyond it they are refused."
    )
    template_timeout_seconds: float = Field(
        5.0, gt=0, description="Longest time that rendering a chat template may take, in seconds."
    )
