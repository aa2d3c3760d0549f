"""Settings of the tokenizer service."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import Address, ServiceSettings


class TokenizerSettings(ServiceSettings):
    """Each setting is a flag and an environment variable `TOKENIZER_…`."""

    model_config = SettingsConfigDict(env_prefix="TOKENIZER_")

    listen: Address = Field("127.0.0.1:50052", description="gRPC listen address, HOST:PORT.")
    model: str = Field(
        "models/demo",
        min_length=1,
        description="Folder that contains tokenizer.json, a Hugging Face hub id such as "
        "Qwen/Qwen3-0.6B, or a GGUF file: model.gguf, or owner/name/model.gguf on the hub. "
        "owner/name@REVISION names a commit, tag or branch. "
        "vllm+grpc://HOST:PORT takes the files from a vLLM engine.",
    )
    max_input_characters: int = Field(
        1_000_000,
        ge=1,
        le=16_000_000,
        description="Maximum characters of one Encode request, including tools and template "
        "variables, and maximum ids of one Decode request.",
    )
    num_workers: int = Field(
        2,
        ge=1,
        le=256,
        description="Worker threads that encode and decode, and worker processes that render "
        "chat templates. Set it to the number of CPU cores of the process.",
    )
    max_waiting: int = Field(
        256,
        ge=0,
        description="Maximum calls that wait for a worker thread. Further calls are refused with "
        "RESOURCE_EXHAUSTED.",
    )
    template_timeout_seconds: float = Field(
        2.0,
        gt=0,
        description="Maximum CPU time to render one chat template, in seconds. A worker process "
        "that exceeds it is killed and replaced. Increase it only for slow templates with very "
        "long conversations.",
    )
    template_memory_mib: int = Field(
        256,
        ge=32,
        le=65_536,
        description="Maximum memory to render one chat template, in MiB. Each worker process may "
        "use this much. Increase it together with TOKENIZER_MAX_INPUT_CHARACTERS.",
    )
