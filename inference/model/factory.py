"""Chooses the model implementation: native C on CPUs, Triton kernels on GPUs, or torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from inference.engine.errors import ModelLoadError
from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.torch_operations import TorchOperations
from inference.model.llama import Llama, MakeOperations
from inference.model.native import decoder
from inference.model.native.decoder import NativeDecoder
from inference.model.native.packing import WeightType
from inference.model.weights.reader import Quantisation
from inference.model.weights.weights import Weights
from inference.runner.step import Step

logger = logging.getLogger(__name__)

SMALL_MODEL_PARAMETERS = 50_000_000
"""Up to this size dtype `auto` selects float32 on a CPU: it is as fast, and exact."""

_TORCH_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_QUANTISATIONS: dict[str, Quantisation] = {"int8": "int8", "int4": "int4", "fp8": "fp8"}
_STORED_TYPES = {4: "int4", 8: "int8"}

FP8_CAPABILITY = (8, 9)
"""Lowest compute capability with eight-bit float matrix products (Ada)."""

FP8_MULTIPLE = 16
"""Both sizes of an fp8 matrix must be multiples of this."""


class Model(Protocol):
    """A loaded checkpoint that computes steps."""

    config: ModelConfig
    num_parameters: int
    dtype: torch.dtype
    """The type of the KV cache."""
    device: torch.device

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None if `step.outputs` is empty."""
        ...

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all tokens."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Options that select and configure the implementation."""

    dtype: str
    kernels: str
    max_context: int
    block_size: int
    threads: int


def weight_type(
    wanted: str, config: ModelConfig, device: torch.device, stored: str | None = None
) -> str:
    """The type of the weights in memory. Raises ModelLoadError if the device cannot compute it.

    `stored` is the `stored_type`, if there is one; `auto` keeps it.
    """
    name = (stored or config.dtype) if wanted == "auto" else wanted
    if wanted == "auto" and stored is None and device.type == "cpu" and _is_small(config):
        name = "float32"
    if name not in (*_TORCH_TYPES, *_QUANTISATIONS):
        raise ModelLoadError(f"config.json: dtype {name!r} is not supported")
    reason = _unsupported_weights(name, config, device)
    if reason is not None:
        raise ModelLoadError(f"INFERENCE_DTYPE is {name}, but {reason}")
    return name


def stored_type(
    config: ModelConfig, weights: Weights, device: torch.device, options: ModelOptions
) -> str | None:
    """int4 or int8 if most weights are stored so and the native decoder can multiply them."""
    if weights.stored_bits is None or _unsupported_native(config, device, options) is not None:
        return None
    return _STORED_TYPES[weights.stored_bits]


def activation_type(name: str) -> torch.dtype:
    """The type of torch's activations and of the KV cache, for weights of this type."""
    return _TORCH_TYPES.get(name, torch.bfloat16)


def make_model(
    config: ModelConfig, weights: Weights, device: torch.device, options: ModelOptions
) -> NativeDecoder | Llama:
    """Reads the weights. Raises ModelLoadError if they or the options are invalid."""
    reason = _unsupported_native(config, device, options)
    if reason is None:
        kind: WeightType = options.dtype  # type: ignore[assignment]  # `_unsupported_native` rejects other types
        return NativeDecoder(
            config,
            weights,
            max_context=options.max_context,
            kind=kind,
            threads=options.threads,
        )
    if options.kernels == "native":
        raise ModelLoadError(f"INFERENCE_KERNELS is native, but {reason}")
    if device.type == "cpu" and options.kernels == "auto":
        logger.warning("native decoder unavailable, using torch", extra={"reason": reason})
    return Llama(
        config,
        weights,
        max_context=options.max_context,
        dtype=activation_type(options.dtype),
        device=device,
        quantisation=_QUANTISATIONS.get(options.dtype),
        make_operations=_operations(config, device, options),
    )


def _operations(config: ModelConfig, device: torch.device, options: ModelOptions) -> MakeOperations:
    """Triton's on a GPU if they support the model; else torch's, with the reason in the log."""
    if options.kernels == "torch" or (device.type == "cpu" and options.kernels != "triton"):
        return TorchOperations
    try:
        # Imported here: torch's CPU builds come without Triton.
        from inference.model.kernels.triton_operations import TritonOperations, unsupported_reason
    except ImportError as error:
        reason: str | None = f"triton cannot be imported: {error}"
    else:
        dtype = activation_type(options.dtype)
        reason = unsupported_reason(config, dtype, options.block_size, device)
        if reason is None:
            return TritonOperations
    if options.kernels == "triton":
        raise ModelLoadError(f"INFERENCE_KERNELS is triton, but {reason}")
    logger.warning("Triton kernels unavailable, using torch", extra={"reason": reason})
    return TorchOperations


def _unsupported_weights(name: str, config: ModelConfig, device: torch.device) -> str | None:
    """Why the device cannot compute weights of this type; None if it can."""
    if name in ("int8", "int4") and device.type == "cuda":
        return f"{name} weights are for CPUs only; on a GPU INFERENCE_DTYPE=fp8 halves the memory"
    if name != "fp8":
        return None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        have = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"the GPU's compute capability is {have}; fp8 requires 8.9 (Ada, Hopper) or higher"
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": config.num_heads * config.head_dim,
        "num_key_value_heads * head_dim": config.num_kv_heads * config.head_dim,
    }
    unaligned = [f"{name} {size}" for name, size in sizes.items() if size % FP8_MULTIPLE]
    return f"{', '.join(unaligned)} is not a multiple of {FP8_MULTIPLE}" if unaligned else None


def _unsupported_native(
    config: ModelConfig, device: torch.device, options: ModelOptions
) -> str | None:
    """Why the native decoder cannot compute the model; None if it can."""
    if options.kernels in ("torch", "triton"):
        return f"INFERENCE_KERNELS is {options.kernels}"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if options.dtype in ("float16", "fp8"):
        return f"dtype {options.dtype} is supported by torch only"
    return decoder.unsupported_reason(config, options.block_size)


def _is_small(config: ModelConfig) -> bool:
    """Whether the estimated number of weights is at most `SMALL_MODEL_PARAMETERS`."""
    tables = 1 if config.tie_word_embeddings else 2
    embeddings = tables * config.vocab_size * config.hidden_size
    return config.num_layer_weights + embeddings <= SMALL_MODEL_PARAMETERS
