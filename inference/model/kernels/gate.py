"""The SwiGLU gate of a feed-forward network: silu(first half) * second half."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _gate(gate_up: tl.tensor, gated: tl.tensor, size: int, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up + row * 2 * size + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * size + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    # Rounds between the two operations, as torch does.
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(
        gated + row * size + columns,
        (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype),
        mask=inside,
    )


def gate(gate_up: Tensor) -> Tensor:
    """The gated values [num_rows, size] of `gate_up` [num_rows, 2 * size]."""
    gate_up = gate_up.contiguous()
    num_rows, both = gate_up.shape
    size = both // 2
    gated = gate_up.new_empty((num_rows, size))
    _gate[(num_rows, triton.cdiv(size, _BLOCK))](gate_up, gated, size, BLOCK=_BLOCK, num_warps=4)
    return gated
