"""Chooses what computes a checkpoint: C on a CPU that can, Triton's kernels on a GPU, or torch."""

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
from inference.model.llama import Llama, MakeOperations, Quantisation
from inference.model.native.decoder import NativeDecoder, unsupported
from inference.model.native.packing import WeightType
from inference.model.weights import Weights
from inference.runner.step import Step

logger = logging.getLogger(__name__)

SMALL_MODEL_PARAMETERS = 50_000_000
"""Up to this size a CPU computes in float32 under dtype `auto`: it is no slower, and exact."""

_TORCH_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_QUANTISATIONS: dict[str, Quantisation] = {"int8": "int8", "fp8": "fp8"}

FP8_CAPABILITY = (8, 9)
"""Of the first GPUs that multiply eight-bit floats."""

FP8_MULTIPLE = 16
"""Of both sizes of a matrix, for them."""


class Model(Protocol):
    """A loaded checkpoint."""

    config: ModelConfig
    num_parameters: int
    dtype: torch.dtype
    """Of the KV cache."""
    device: torch.device

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None where none are wanted."""
        ...

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How a model is to be computed."""

    dtype: str
    kernels: str
    max_context: int
    block_size: int
    threads: int


def weight_type(wanted: str, config: ModelConfig, device: torch.device) -> str:
    """What the weights are stored as. Raises ModelLoadError for a type that nothing computes."""
    name = config.dtype if wanted == "auto" else wanted
    if wanted == "auto" and device.type == "cpu" and _is_small(config):
        name = "float32"
    if name not in (*_TORCH_TYPES, "int8", "fp8"):
        raise ModelLoadError(f"config.json: dtype {name!r} is not supported")
    reason = _why_no_such_weights(name, config, device)
    if reason is not None:
        raise ModelLoadError(f"INFERENCE_DTYPE is {name}, but {reason}")
    return name


def activation_type(name: str) -> torch.dtype:
    """Of activations under torch, and of the KV cache, for weights of this type."""
    return _TORCH_TYPES.get(name, torch.bfloat16)


def make_model(
    config: ModelConfig, weights: Weights, device: torch.device, options: ModelOptions
) -> NativeDecoder | Llama:
    """Reads the weights. Raises ModelLoadError saying what is wrong with them or the options."""
    reason = _why_not_native(config, device, options)
    if reason is None:
        kind: WeightType = options.dtype  # type: ignore[assignment]  # checked above
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
        logger.warning("torch computes the model, slower than native", extra={"reason": reason})
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
    """Triton's on a GPU, where they can compute the model; else torch's, and the log says why."""
    if options.kernels == "torch" or (device.type == "cpu" and options.kernels != "triton"):
        return TorchOperations
    try:
        # Imported here: torch for CPUs comes without Triton.
        from inference.model.kernels.triton_operations import TritonOperations, unsupported
    except ImportError as error:
        reason: str | None = f"triton cannot be imported: {error}"
    else:
        dtype = activation_type(options.dtype)
        reason = unsupported(config, dtype, options.block_size, device)
        if reason is None:
            return TritonOperations
    if options.kernels == "triton":
        raise ModelLoadError(f"INFERENCE_KERNELS is triton, but {reason}")
    logger.warning("torch computes the model, slower than triton", extra={"reason": reason})
    return TorchOperations


def _why_no_such_weights(name: str, config: ModelConfig, device: torch.device) -> str | None:
    if name == "int8" and device.type == "cuda":
        return "int8 weights are for CPUs; on a GPU INFERENCE_DTYPE=fp8 takes as little memory"
    if name != "fp8":
        return None
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        have = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"the GPU's compute capability is {have}; it takes 8.9 (Ada, Hopper) or more"
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": config.num_heads * config.head_dim,
        "num_key_value_heads * head_dim": config.num_kv_heads * config.head_dim,
    }
    odd = [f"{name} {size}" for name, size in sizes.items() if size % FP8_MULTIPLE]
    return f"{', '.join(odd)} is no multiple of {FP8_MULTIPLE}" if odd else None


def _why_not_native(config: ModelConfig, device: torch.device, options: ModelOptions) -> str | None:
    if options.kernels in ("torch", "triton"):
        return f"INFERENCE_KERNELS is {options.kernels}"
    if device.type != "cpu":
        return f"the device is {device.type}"
    if options.dtype in ("float16", "fp8"):
        return f"dtype {options.dtype} is torch's only"
    return unsupported(config, options.block_size)


def _is_small(config: ModelConfig) -> bool:
    """About how many weights the config implies, against the limit."""
    tables = 1 if config.tie_word_embeddings else 2
    embeddings = tables * config.vocab_size * config.hidden_size
    return config.num_layer_weights + embeddings <= SMALL_MODEL_PARAMETERS
