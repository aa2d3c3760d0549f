"""What a decoder is computed with, apart from its matrices: by torch, or by Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.runner.step_inputs import StepInputs

if TYPE_CHECKING:  # it rounds with what is defined here
    from inference.model.layers.linear import Linear


class Quantised(NamedTuple):
    """Rows in float8_e4m3fn, [num_rows, size], and what each is to be multiplied by."""

    rows: Tensor
    scales: Tensor
    """[num_rows, 1] in float32."""


Quantise = Callable[[Tensor], Quantised]


class Attention(Protocol):
    """The attention of one step; the same object for all layers."""

    def __call__(
        self, qkv: Tensor, layer: int, norms: tuple[Tensor, Tensor] | None, *, rotates: bool
    ) -> Tensor:
        """Stores the keys and values of these tokens, and gives what their queries see.

        `qkv` is [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]; the result is
        [num_tokens, num_heads * head_dim]. `norms` are weights [head_dim] of norms on each head's
        query and key, for models that have them; `rotates` says whether positions are put in.
        """
        ...


class Operations(Protocol):
    """The operations of one model on its device. None of them waits for the device.

    Those that have a body may be done in other steps, with other roundings.
    """

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root mean square norm over the last dimension, in float32 (arXiv:1910.07467)."""
        ...

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of the sum, and the sum; both arguments [num_tokens, hidden_size].

        The sum may take the residual's place in memory.
        """
        ...

    def gate(self, gate_up: Tensor) -> Tensor:
        """silu(left half) * right half of [num_tokens, 2 * intermediate_size]."""
        ...

    def quantise(self, x: Tensor) -> Quantised:
        """Rounds [num_rows, size] to eight bits, each row with a scale of its own."""
        ...

    def multiply(self, x: Tensor, matrix: Linear) -> Tensor:
        """The product."""
        return matrix(x)

    def multiply_gate(self, x: Tensor, matrix: Linear) -> Tensor:
        """The gate over the product, half as wide."""
        return self.gate(self.multiply(x, matrix))

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        """Prepares the attention of a step."""
        ...

    def invariant(self) -> Operations:
        """Those that give a token the same numbers whatever else is in its step.

        These, where they do so already or nothing does.
        """
        return self
