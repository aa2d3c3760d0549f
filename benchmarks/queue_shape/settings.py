"""Settings of the LLM service and the workers of the queue architecture."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import ServiceSettings

JOBS = "jobs"
"""Redis list of the jobs."""


class QueueSettings(ServiceSettings):
    """Read from variables `QUEUE_…` and flags of the same names."""

    model_config = SettingsConfigDict(env_prefix="QUEUE_")

    redis_port: int = Field(6379, description="Port of Redis on loopback.")
    tokenizer_target: str = Field(
        "127.0.0.1:50052", description="Address of the tokenizer, HOST:PORT."
    )
    inference_target: str = Field(
        "127.0.0.1:50053", description="Address of the engine, HOST:PORT."
    )
    workers: int = Field(4, ge=1, description="Concurrent requests of the pool.")
