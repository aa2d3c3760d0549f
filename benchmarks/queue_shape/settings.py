"""What the two parts of the older shape can be told."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from mesh.process.settings import ServiceSettings

JOBS = "jobs"
"""The list that the service pushes to and the workers pop from."""


class QueueSettings(ServiceSettings):
    """Variables `QUEUE_…` and flags of the same names."""

    model_config = SettingsConfigDict(env_prefix="QUEUE_")

    redis_port: int = Field(6379, description="Redis, on loopback.")
    tokenizer_target: str = Field("127.0.0.1:50052", description="The tokenizer, HOST:PORT.")
    inference_target: str = Field("127.0.0.1:50053", description="The engine, HOST:PORT.")
    workers: int = Field(4, ge=1, description="Requests that are worked on at once.")
