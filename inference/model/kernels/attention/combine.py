"""Combines the partial results of split attention; one program per query and head.

A part is the attention over its own keys, with the logarithm of the sum of their weights
(as in FlashDecoding).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

MAX_SPLITS = 32

_AT_ONCE = 4
"""How many parts a program loads before it adds the first of them."""


@triton.jit(do_not_specialize=["num_splits"])
def _combine(
    partial: tl.tensor,
    logarithms: tl.tensor,
    output: tl.tensor,
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
    offset = (row * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :]
    parts = tl.load(partial + offset, mask=inside, other=0.0)
    total = tl.sum(weight, axis=0)
    result = tl.sum(parts * weight[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(
        output + row * HEAD_DIM + dims, result.to(output.dtype.element_ty), mask=dims < HEAD_DIM
    )


@triton.jit
def empty_softmax(ROWS: tl.constexpr, DIM: tl.constexpr) -> tl.tensor:
    """The state of an online softmax before its first part: peak, total weight, weighted sum."""
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    return peak, tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS, DIM], dtype=tl.float32)


@triton.jit
def add_part(
    peak: tl.tensor, total: tl.tensor, sums: tl.tensor, logarithm: tl.tensor, result: tl.tensor
) -> tl.tensor:
    """The state with one more part; a part without keys leaves every bit unchanged."""
    new_peak = tl.maximum(peak, logarithm)
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    decay = tl.exp2(peak - base)
    weight = tl.exp2(logarithm - base)
    # Explicit fused multiply-adds: the compiler must not fuse differently in two kernels.
    total = tl.fma(total, decay, weight)
    wide = tl.broadcast_to(decay[:, None], sums.shape)
    return new_peak, total, tl.fma(sums, wide, result * weight[:, None])


@triton.jit
def normalise(total: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """The attention's output, from the state after the last part."""
    return sums / tl.where(total > 0.0, total, 1.0)[:, None]


@triton.jit(do_not_specialize=["num_splits"])
def _combine_in_order(
    partial: tl.tensor,
    logarithms: tl.tensor,
    output: tl.tensor,
    num_splits: int,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    first = row * num_splits
    dims = tl.arange(0, DIM)
    splits = tl.arange(0, SPLITS)
    every = tl.load(logarithms + first + splits, mask=splits < num_splits, other=float("-inf"))
    has_keys = every > float("-inf")
    low = tl.min(tl.where(has_keys, splits, SPLITS), axis=0)
    high = tl.max(tl.where(has_keys, splits + 1, 0), axis=0)
    peak, total, sums = empty_softmax(1, DIM)
    for start in range(low, high, AT_ONCE):
        for number in tl.static_range(AT_ONCE):
            split = start + number + tl.arange(0, 1)
            is_part = split < high
            logarithm = tl.load(logarithms + first + split, mask=is_part, other=float("-inf"))
            part = tl.load(
                partial + (first + split)[:, None] * HEAD_DIM + dims[None, :],
                mask=is_part[:, None] & (dims < HEAD_DIM)[None, :],
                other=0.0,
            )
            # The memory of a part without keys is uninitialised.
            part = tl.where((logarithm > float("-inf"))[:, None], part, 0.0)
            peak, total, sums = add_part(peak, total, sums, logarithm, part)
    tl.store(
        output + row * HEAD_DIM + dims[None, :],
        normalise(total, sums).to(output.dtype.element_ty),
        mask=(dims < HEAD_DIM)[None, :],
    )


def combine(partial: Tensor, logarithms: Tensor, output: Tensor, *, in_order: bool = False) -> None:
    """Writes `output` [num_rows, num_heads, head_dim].

    `partial` is [num_rows, num_heads, num_splits, head_dim]; `logarithms`, to base 2, is
    [num_rows, num_heads, num_splits]. A part with logarithm minus infinity is not read. `in_order`
    adds one part after the other, exactly like the attention kernel that computes all parts in one
    program.
    """
    num_rows, num_heads, num_splits, head_dim = partial.shape
    assert num_splits <= MAX_SPLITS, f"at most {MAX_SPLITS} splits, not {num_splits}"
    sizes = {
        "HEAD_DIM": head_dim,
        "DIM": triton.next_power_of_2(head_dim),
        "SPLITS": MAX_SPLITS,
    }
    grid = (num_rows, num_heads)
    if in_order:
        _combine_in_order[grid](
            partial, logarithms, output, num_splits, AT_ONCE=_AT_ONCE, num_warps=1, **sizes
        )
    else:
        _combine[grid](partial, logarithms, output, num_splits, num_warps=4, **sizes)
