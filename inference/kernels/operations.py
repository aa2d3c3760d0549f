"""A decoder's operations as Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from inference.kernels.attention import attend
from inference.kernels.gate import gate
from inference.kernels.launches import Launches
from inference.kernels.norm import add_norm, norm
from inference.kernels.quantise import quantise
from inference.kernels.rotate import rotate_and_store
from inference.kv_cache import KVCache
from inference.layers.operations import Attention, Quantised
from inference.layers.rotary import RotaryEmbedding
from inference.model_config import ModelConfig
from inference.step_inputs import StepInputs

PROGRAMS_PER_PROCESSOR = 2
"""Of the attention, that run side by side on a multiprocessor."""


class TritonOperations:
    """Implements `Operations`."""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding) -> None:
        self.config = config
        self.rotary = rotary
        num_processors = 4
        device = rotary.tables[0].device
        if device.type == "cuda":
            num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.launches = Launches(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            num_programs=num_processors * PROGRAMS_PER_PROCESSOR,
        )

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return norm(x, weight, self.config.rms_norm_eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(x, residual, weight, self.config.rms_norm_eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        return gate(gate_up)

    def quantise(self, x: Tensor) -> Quantised:
        return quantise(x)

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        return TritonAttention(self, inputs, cache)


class TritonAttention:
    """Implements `Attention`."""

    def __init__(self, operations: TritonOperations, inputs: StepInputs, cache: KVCache) -> None:
        self._config = operations.config
        self._tables = operations.rotary.tables
        self._inputs = inputs
        self._cache = cache
        self._launches = operations.launches.of(inputs, cache.block_size)

    def __call__(
        self, qkv: Tensor, layer: int, norms: tuple[Tensor, Tensor] | None, *, rotates: bool
    ) -> Tensor:
        inputs, stored = self._inputs, self._cache.layer(layer)
        queries = rotate_and_store(
            qkv,
            stored,
            inputs.positions,
            inputs.slots,
            self._tables,
            norms,
            self._config.rms_norm_eps,
            rotates=rotates,
        )
        seen = torch.empty_like(queries)
        for launch in self._launches:
            attend(
                queries,
                stored,
                seen,
                inputs,
                launch,
                block_size=self._cache.block_size,
                window=self._config.sliding_window,
            )
        return seen.flatten(1)


def unsupported(config: ModelConfig, block_size: int, device: torch.device) -> str | None:
    """Why these kernels cannot compute this model there; None if they can."""
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return f"the device is {device.type}"
    if block_size < 16 or block_size & (block_size - 1):
        return f"block_size {block_size} is no power of two from 16 on"
    if config.head_dim % 2 or config.head_dim > 256:
        return f"head_dim {config.head_dim} is odd or over 256"
    if config.hidden_size > 65_536 or config.intermediate_size > 65_536:
        return "hidden_size or intermediate_size is over 65536"
    return None
