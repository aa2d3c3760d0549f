"""Root mean square norm of a sum, one program a row."""

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
    place = tl.program_id(0).to(tl.int64) * size + columns
    value = tl.load(x + place, mask=inside, other=0.0)
    if ADDS:
        # Rounded to the activations' type before the norm, as torch rounds it.
        total = value.to(tl.float32) + tl.load(residual + place, mask=inside, other=0.0)
        value = total.to(value.dtype)
        tl.store(residual + place, value, mask=inside)
    wide = value.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + eps)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = (wide * scale).to(value.dtype).to(tl.float32) * factor
    tl.store(normed + place, result.to(value.dtype), mask=inside)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm of each row of `x` [num_rows, size]."""
    return _launch(x, None, weight, eps)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of the sum, and the sum, which is where the residual was."""
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
