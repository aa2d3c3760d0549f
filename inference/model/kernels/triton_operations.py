"""The `Operations` protocol with Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton import knobs

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.kernels import launcher
from inference.model.kernels.attention.attention import attend
from inference.model.kernels.attention.launches import Launches, part_length
from inference.model.kernels.attention.rotate import rotate_and_store
from inference.model.kernels.gate import gate
from inference.model.kernels.matvec import matvec
from inference.model.kernels.norm import add_norm, norm
from inference.model.kernels.product import Products
from inference.model.kernels.quantise import quantise
from inference.model.layers.linear import Linear
from inference.model.layers.operations import Attention, Operations
from inference.model.layers.quantise import Quantised
from inference.model.layers.rotary import RotaryEmbedding
from inference.runner.step_inputs import StepInputs

PROGRAMS_PER_PROCESSOR = 2
"""Attention programs that a multiprocessor runs at the same time."""

NUM_INTERPRETED = 4
"""Multiprocessors that are assumed without a GPU, for Triton's interpreter."""

FEW_ROWS = 32
FEW_ROWS_IN_EIGHT_BITS = 64
"""Most rows for which our kernel is faster than cuBLAS on an H200."""

CAPABILITY = (8, 0)
"""Lowest compute capability with bfloat16 matrix products (Ampere)."""

MAX_HIDDEN = 16_384
"""The norm kernel holds a row in registers."""


class TritonOperations(Operations):
    """Fused kernels, with special ones for few rows."""

    _part = 0
    """`Launch.part` of the attention's launches."""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding) -> None:
        device = rotary.tables[0].device
        self.config = config
        self.rotary = rotary
        self.products = Products(device)
        self.launches = Launches(
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            num_programs=PROGRAMS_PER_PROCESSOR * _num_processors(device),
            part=self._part,
        )

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return norm(x, weight, self.config.norm_eps)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return add_norm(x, residual, weight, self.config.norm_eps)

    def gate(self, gate_up: Tensor) -> Tensor:
        return gate(gate_up)

    def quantise(self, x: Tensor) -> Quantised:
        return quantise(x)

    def multiply(self, x: Tensor, matrix: Linear) -> Tensor:
        num_rows = len(x)
        if num_rows == 1 and matrix.scales is None:
            return matvec(x, matrix.weight, bias=matrix.bias)
        if num_rows <= (FEW_ROWS if matrix.scales is None else FEW_ROWS_IN_EIGHT_BITS):
            return self.product(x, matrix)
        return matrix(x)

    def multiply_gate(self, x: Tensor, matrix: Linear) -> Tensor:
        if len(x) == 1 and matrix.scales is None:
            return matvec(x, matrix.weight, bias=matrix.bias, gates=True)
        return super().multiply_gate(x, matrix)

    def product(self, x: Tensor, matrix: Linear) -> Tensor:
        """The batch-invariant product."""
        if matrix.scales is None:
            return self.products(x, matrix.weight, bias=matrix.bias)
        rows, scales = self.quantise(x)
        return self.products(
            rows, matrix.weight, bias=matrix.bias, scales=(scales, matrix.scales), dtype=x.dtype
        )

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        return TritonAttention(self, inputs, cache)

    def batch_invariant(self) -> BatchInvariantOperations:
        return BatchInvariantOperations(self.config, self.rotary)


class BatchInvariantOperations(TritonOperations):
    """Operations whose order of summation for a row does not depend on other rows."""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding) -> None:
        self._part = part_length(len(rotary.tables[0]))
        super().__init__(config, rotary)

    def multiply(self, x: Tensor, matrix: Linear) -> Tensor:
        return self.product(x, matrix)

    def multiply_gate(self, x: Tensor, matrix: Linear) -> Tensor:
        return self.gate(self.multiply(x, matrix))

    def batch_invariant(self) -> BatchInvariantOperations:
        return self


class TritonAttention:
    """Implements `Attention`."""

    def __init__(self, operations: TritonOperations, inputs: StepInputs, cache: KVCache) -> None:
        self._config = operations.config
        self._tables = operations.rotary.tables
        self._inputs = inputs
        self._cache = cache
        self._launches = operations.launches.for_step(
            inputs, cache.block_size, self._config.head_dim * cache.dtype.itemsize
        )

    def __call__(
        self,
        qkv: Tensor,
        layer: int,
        norms: tuple[Tensor, Tensor] | None,
        *,
        rotates: bool,
        sinks: Tensor | None = None,
    ) -> Tensor:
        assert sinks is None, "`unsupported_reason` refuses models with sinks"
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
        output = torch.empty_like(queries)
        for launch in self._launches:
            attend(
                queries,
                stored,
                output,
                inputs,
                launch,
                block_size=self._cache.block_size,
                window=self._config.sliding_window,
            )
        return output.flatten(1)


def _num_processors(device: torch.device) -> int:
    """Multiprocessors of the GPU, each of which runs programs in parallel."""
    if device.type != "cuda":
        return NUM_INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count


def unsupported_reason(
    config: ModelConfig, dtype: torch.dtype, block_size: int, device: torch.device
) -> str | None:
    """Why these kernels cannot compute the model on this device; None if they can."""
    if config.unusual_features:
        return f"the model has {config.unusual_features[0]}"
    if not knobs.runtime.interpret:
        if device.type != "cuda":
            return f"the device is {device.type}"
        if torch.cuda.get_device_capability(device) < CAPABILITY:
            return "the GPU is older than Ampere (compute capability 8.0)"
        if dtype == torch.float32:
            return (
                "dtype float32 is supported by torch only"  # tiles would not fit in the registers
            )
        launcher.install()
        try:
            assert triton.runtime.driver.active.utils  # compiles the launcher if it is missing
        except Exception as error:
            return f"Triton cannot launch kernels: {error}"
    if block_size < 16 or block_size & (block_size - 1):
        return f"block_size {block_size} is not a power of two of at least 16"
    if config.head_dim % 2 or config.head_dim > 256:
        return f"head_dim {config.head_dim} is odd or over 256"
    if config.hidden_size > MAX_HIDDEN:
        return f"hidden_size {config.hidden_size} is over {MAX_HIDDEN}"
    return None
