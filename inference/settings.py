"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from inference.engine.adapters import LoraModule
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS
from inference.scheduler.prefill_budget import TARGET_STEP_SECONDS
from mesh.hub.reference import hub_reference
from mesh.process.settings import Address, ServiceSettings


class InferenceSettings(ServiceSettings):
    """Read from the variables `INFERENCE_…` and the flags of the same names."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_")

    listen: Address = Field("127.0.0.1:50053", description="Address of the gRPC server, HOST:PORT.")
    model: str = Field(
        "models/demo",
        min_length=1,
        description="Model to serve: a folder or a Hugging Face hub id with safetensors weights, "
        "or a GGUF file: model.gguf, or owner/name/model.gguf on the hub. owner/name@REVISION "
        "names a commit, tag or branch.",
    )
    model_name: str = Field(
        "",
        description="Name under which clients request the model. Empty: the name of the folder or "
        "GGUF file, or the hub id.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device that runs the model. auto: a GPU if there is one, else the CPU."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4", "fp8"] = Field(
        "auto",
        description="Type of the weights. auto: the type in the model's files; integers of four or "
        "eight bits remain so on a CPU. int8 and int4 (CPU) and fp8 (GPU, from Ada and Hopper on) "
        "quantise at load, for less memory and faster decoding.",
    )
    kernels: Literal["auto", "native", "triton", "torch"] = Field(
        "auto",
        description="Implementation of the model's operations. auto: native on a CPU with AVX2 or "
        "AVX-512, triton on a GPU, else torch. Set torch to rule out the other kernels when "
        "debugging.",
    )
    cuda_graphs: bool = Field(
        True,
        description="Capture decode steps as CUDA graphs: faster steps, longer start, more memory. "
        "No effect on a CPU. Turn off if capturing fails.",
    )
    batch_invariance: Literal["seeded", "all", "none"] = Field(
        "seeded",
        description="Requests that use batch-invariant kernels on a GPU, so that their tokens do "
        "not depend on other requests: seeded (those with a seed), all or none. Large steps with "
        "such requests are slower. No effect on a CPU, where all requests are batch-invariant.",
    )
    max_num_seqs: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most sequences that run at once. Raise it for throughput, lower it for a "
        "shorter inter-token latency.",
    )
    max_num_waiting: int = Field(
        256,
        ge=0,
        description="Most sequences in the waiting queue; further ones are refused as overloaded.",
    )
    max_num_batched_tokens: int = Field(
        2048,
        ge=16,
        description="Token budget of a step. Longer prompts are computed in several steps (chunked "
        "prefill).",
    )
    target_step_seconds: float = Field(
        TARGET_STEP_SECONDS,
        ge=0,
        le=60,
        description="Time in seconds that a step with prompts should take while other requests run "
        "or wait: the engine computes as many tokens of prompts in it as its measured speed "
        "allows, but at least 128. Lower it for even streams, raise it for throughput on slow "
        "machines. 0: no limit but max_num_batched_tokens.",
    )
    max_context: int = Field(
        0,
        ge=0,
        description="Most tokens of prompt and completion together. 0: the model's own limit. "
        "Lower it to save memory.",
    )
    block_size: int = Field(
        16, ge=1, le=256, description="Tokens per block of the KV cache. Rarely needs a change."
    )
    kv_cache_tokens: int = Field(
        0,
        ge=0,
        description="Size of the KV cache in tokens. 0: as many as fit into the free memory.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Threads of the forward pass on a CPU. 0: the CPUs of the container's quota.",
    )
    max_messages_per_second: float = Field(
        1250.0,
        ge=0,
        description="Most messages with tokens per second, of all streams together. Above it, "
        "messages carry several tokens, which saves CPU at every hop. 0: no limit, one message per "
        "stream and step.",
    )
    step_timeout_seconds: float = Field(
        STEP_TIMEOUT_SECONDS,
        ge=1,
        le=3600,
        description="Shortest time in seconds after which a step that has not returned is stuck: "
        "the engine is not ready, and its requests continue on other replicas. After twice the "
        "time liveness fails and the process ends. A step may always take ten times as long as "
        "earlier ones of its size. Raise it for CPUs with other work.",
    )
    traced_steps: int = Field(
        64,
        ge=0,
        description="Record a trace span for every n-th engine step, if a trace exporter is "
        "configured. 0: none.",
    )
    num_speculative_tokens: int = Field(
        8,
        ge=0,
        le=64,
        description="Most speculative tokens per sequence and step, proposed by prompt lookup "
        "(n-gram matching). It does not change the tokens. 0: no speculative decoding.",
    )
    close_objects: bool = Field(
        True,
        description="Objects of a JSON schema that declare properties have no others, unless the "
        "schema has additionalProperties: models otherwise invent them up to max_tokens. false: as "
        "JSON Schema defines it.",
    )
    max_constraint_seconds: float = Field(
        0.8,
        gt=0,
        le=60,
        description="Most CPU seconds to compile a JSON schema, regular expression or grammar; "
        "above it the request is refused. Raise it for very large schemas.",
    )
    max_constraint_megabytes: int = Field(
        128,
        ge=16,
        le=65536,
        description="Most memory in MiB to compile a JSON schema, regular expression or grammar; "
        "above it the request is refused. Up to two compile at once in the engine's process.",
    )
    lora_modules: str = Field(
        "",
        description="LoRA adapters to load with the model: NAME=PATH, separated by commas. "
        "Requests name them as their model. PATH is a folder or a hub id with adapter_config.json "
        "and adapter_model.safetensors.",
    )
    max_loras: int = Field(
        8, ge=1, le=1024, description="Most LoRA adapters that are loaded at the same time."
    )
    max_lora_rank: int = Field(
        64, ge=1, le=1024, description="Highest rank of a LoRA adapter; higher ones are refused."
    )
    allow_runtime_lora: bool = Field(
        False,
        description="Load and unload LoRA adapters while the engine runs, by LoadAdapter and "
        "UnloadAdapter. Allow it only if everyone who can call them may read this machine's "
        "folders and use its hub token.",
    )
    fake_model: bool = Field(
        False,
        description="Serve generated ids instead of a model. For tests and benchmarks only.",
    )
    fake_tokens_per_second: float = Field(
        0.0,
        ge=0,
        description="Tokens per second of each stream of the fake model. 0: as fast as the client "
        "reads.",
    )

    @field_validator("lora_modules")
    @classmethod
    def _check_lora_modules(cls, value: str) -> str:
        for part in filter(None, map(str.strip, value.split(","))):
            name, _, path = part.partition("=")
            if not name or not path:
                raise ValueError(f"must be NAME=PATH, separated by commas, given {part}")
        return value

    @property
    def lora_module_list(self) -> tuple[LoraModule, ...]:
        """The parts of `lora_modules`."""
        parts = filter(None, map(str.strip, self.lora_modules.split(",")))
        return tuple(LoraModule(*part.split("=", 1)) for part in parts)

    @property
    def served_name(self) -> str:
        """The name under which clients request the model."""
        if self.model_name:
            return self.model_name
        if self.model.endswith(".gguf"):
            return Path(self.model).stem
        reference = None if Path(self.model).is_dir() else hub_reference(self.model)
        return Path(self.model).name if reference is None else reference.repository
