"""The operations of a decoder layer other than its matrices, as a protocol.

`TorchOperations` implements it with torch's operations, `TritonOperations` with Triton kernels.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.layers.linear import Linear
from inference.model.layers.quantise import Quantised
from inference.runner.step_inputs import StepInputs


class Attention(Protocol):
    """The attention of one step; all layers use the same object."""

    def __call__(
        self,
        qkv: Tensor,
        layer: int,
        norms: tuple[Tensor, Tensor] | None,
        *,
        rotates: bool,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Stores the keys and values of the step's tokens in the cache and computes attention.

        `qkv` is [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; the result is
        [num_tokens, num_heads * head_dim]. `norms` are the weights [head_dim] of the RMS norms on
        each head's query and key, for models that have them. `rotates` enables the rotary
        embedding. `sinks` [num_heads] are scores that take part in the softmax, without a value.
        """
        ...


class Operations(Protocol):
    """The operations of one model on its device; none of them synchronises with the device.

    An implementation may fuse the composed operations, so their roundings may differ.
    """

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root mean square norm over the last dimension, in float32 (arXiv:1910.07467)."""
        ...

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the RMS norm of `x + residual`, and the sum; each [num_tokens, hidden_size].

        The sum may be written to the residual's memory.
        """
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """The gated values: [num_tokens, 2 * intermediate_size] to half of it.

        SwiGLU, silu(left half) * right half, or the family's activation in place of silu.
        """
        ...

    def quantise(self, x: Tensor) -> Quantised:
        """Quantises [num_rows, size] to eight-bit floats with one scale per row."""
        ...

    def multiply(self, x: Tensor, matrix: Linear) -> Tensor:
        """The matrix product, plus the bias if there is one."""
        return matrix(x)

    def multiply_gate(self, x: Tensor, matrix: Linear) -> Tensor:
        """`gate` of the product, [num_tokens, intermediate_size]."""
        return self.gate(self.multiply(x, matrix))

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        """Prepares the attention of a step."""
        ...

    def batch_invariant(self) -> Operations:
        """Operations whose results for a token do not depend on the rest of its batch.

        Returns itself if it is batch-invariant already, or if there is no such implementation.
        """
        return self
