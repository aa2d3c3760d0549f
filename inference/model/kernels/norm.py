"""Root mean square norm, optionally of a sum; one program per row."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    eps: float,
    size: int,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    offsets = tl.program_id(0).to(tl.int64) * size + columns
    value = tl.load(x + offsets, mask=inside, other=0.0)
    if ADDS:
        # Rounds to the activations' type before the norm, as torch does.
        total = value.to(tl.float32) + tl.load(residual + offsets, mask=inside, other=0.0)
        value = total.to(value.dtype)
        tl.store(residual + offsets, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = (wide * scale).to(value.dtype).to(tl.float32) * factor
    tl.store(normed + offsets, result.to(value.dtype), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The RMS norm of each row of `x` [num_rows, size]."""
    return _launch(x, None, weight, eps)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of the sum, and the sum, which overwrites the residual."""
    return _launch(x, residual, weight, eps), residual


def _launch(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    x = x.contiguous()
    assert residual is None or residual.is_contiguous(), "the sum is stored in the residual"
    num_rows, size = x.shape
    normed = x.new_empty(x.shape)
    block = triton.next_power_of_2(size)
    _add_norm[(num_rows,)](
        x,
        x if residual is None else residual,
        weight,
        normed,
        eps,
        size,
        ADDS=residual is not None,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return normed
