"""Puts the partial results of an attention together, one program a query and head.

Each part is the softmax over its own keys, and the logarithm of its weight among all.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS = 32


@triton.jit(do_not_specialize=["num_splits"])
def _combine(
    partial: tl.tensor,
    logarithms: tl.tensor,
    seen: tl.tensor,
    num_splits: int,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, DIM)
    logarithm = tl.load(
        logarithms + row * num_splits + splits, mask=splits < num_splits, other=float("-inf")
    )
    peak = tl.max(logarithm, axis=0)
    weight = tl.exp2(logarithm - tl.where(peak == float("-inf"), 0.0, peak))
    inside = (weight > 0.0)[:, None] & (dims < HEAD_DIM)[None, :]
    place = (row * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :]
    parts = tl.load(partial + place, mask=inside, other=0.0)
    total = tl.sum(weight, axis=0)
    result = tl.sum(parts * weight[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(seen + row * HEAD_DIM + dims, result.to(seen.dtype.element_ty), mask=dims < HEAD_DIM)


def combine(partial: Tensor, logarithms: Tensor, seen: Tensor) -> None:
    """Writes `seen` [num_rows, num_heads, head_dim].

    `partial` is [num_rows, num_heads, num_splits, head_dim], `logarithms` to base 2 of the same
    but the last. A part with logarithm minus infinity is not read.
    """
    num_rows, num_heads, num_splits, head_dim = partial.shape
    assert num_splits <= MAX_SPLITS, f"at most {MAX_SPLITS} splits, not {num_splits}"
    _combine[(num_rows, num_heads)](
        partial,
        logarithms,
        seen,
        num_splits,
        HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(head_dim),
        SPLITS=MAX_SPLITS,
        num_warps=4,
    )
