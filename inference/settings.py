"""What the inference service can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from inference.runner.invariance import Invariance
from mesh.process.settings import Address, ServiceSettings


class InferenceSettings(ServiceSettings):
    """Variables `INFERENCE_…` and the flags of the same names."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_")

    listen: Address = Field("127.0.0.1:50053", description="Address to serve on, HOST:PORT.")
    model: str = Field(
        "models/demo", min_length=1, description="Folder or hub id of the model, safetensors only."
    )
    model_name: str = Field(
        "", description="Name that clients ask for; empty: the folder's name or the hub id."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to run; auto takes a GPU if there is one."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"] = Field(
        "auto",
        description="Type of the weights; auto takes the model's own. int8 (on CPUs) and fp8 (on "
        "GPUs since Ada and Hopper) quantise at load.",
    )
    kernels: Literal["auto", "native", "triton", "torch"] = Field(
        "auto",
        description="What computes. auto takes native on a CPU that has AVX-512 or AVX2, triton on "
        "a GPU, and torch where these cannot.",
    )
    cuda_graphs: bool = Field(
        True, description="Capture decode steps on a GPU: longer to load, faster steps."
    )
    batch_invariance: Invariance = Field(
        Invariance.SEEDED,
        description="Whose tokens do not depend on what else runs on a GPU: of requests with a "
        "seed, of all, or of none. Large steps with them are slower. On CPUs it changes nothing.",
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Most sequences in a batch.")
    max_num_waiting: int = Field(
        256, ge=0, description="Most sequences that may wait for a place; beyond it: refused."
    )
    max_num_batched_tokens: int = Field(
        2048, ge=16, description="Most tokens in a step; longer prompts are cut into pieces."
    )
    max_context: int = Field(
        0, ge=0, description="Most tokens of prompt and completion; 0: what the model was made for."
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens in a block of the KV cache.")
    kv_cache_tokens: int = Field(
        0, ge=0, description="Tokens the KV cache has room for; 0: sized from the free memory."
    )
    threads: int = Field(
        0, ge=0, description="Threads of the forward pass on a CPU; 0: what the quota gives."
    )
    max_messages_per_second: float = Field(
        1250.0,
        ge=0,
        description="Most messages with tokens that leave in a second; with many streams each "
        "carries more tokens instead. 0: one for each step of each stream.",
    )
    traced_steps: int = Field(
        64, ge=0, description="One engine step in so many has a span of its own; 0: none."
    )
    num_speculative_tokens: int = Field(
        8,
        ge=0,
        le=64,
        description="Most next tokens of a sequence to guess from what it says already; 0: none.",
    )
    fake_model: bool = Field(
        False, description="Serve made-up ids instead of a model, for tests and benchmarks only."
    )
    fake_tokens_per_second: float = Field(
        0.0, ge=0, description="Pace of a fake stream; 0: as fast as the caller reads."
    )

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        if self.model_name:
            return self.model_name
        is_folder = self.model.startswith((".", "/", "~")) or Path(self.model).is_dir()
        return Path(self.model).name if is_folder else self.model
