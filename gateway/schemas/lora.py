"""Requests that load and unload LoRA adapters, as vLLM's."""

from __future__ import annotations

from pydantic import Field

from gateway.schemas.common import Body

MAX_NAME = 256
MAX_PATH = 4096


class LoadLoraRequest(Body):
    """An adapter to load."""

    lora_name: str = Field(
        min_length=1, max_length=MAX_NAME, description="Name under which requests use it."
    )
    lora_path: str = Field(
        min_length=1,
        max_length=MAX_PATH,
        description="A folder on the engines' machines, or a repository of the Hugging Face hub.",
    )
    model: str = Field("", description="Model to load it for. Default: the only one.")


class UnloadLoraRequest(Body):
    """An adapter to unload."""

    lora_name: str = Field(min_length=1, max_length=MAX_NAME, description="Name of the adapter.")
