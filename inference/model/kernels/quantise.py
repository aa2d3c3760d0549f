"""Quantises rows to float8_e4m3fn with one scale per row; one program per row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference.model.layers.quantise import FP8, FP8_MAX, SMALLEST_AMAX, Quantised

_LARGEST_BLOCK = 8192
"""A longer row is read twice, block by block."""


@triton.jit
def _quantise(
    x: tl.tensor,
    rows: tl.tensor,
    scales: tl.tensor,
    size: int,
    LARGEST: tl.constexpr,
    SMALLEST_AMAX: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * size + columns, mask=columns < size, other=0.0)
        largest = tl.maximum(largest, tl.abs(value.to(tl.float32)))
    scale = tl.maximum(tl.max(largest, axis=0), SMALLEST_AMAX) / LARGEST
    tl.store(scales + row, scale)
    for start in range(0, size, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < size
        value = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
        scaled = tl.minimum(tl.maximum(value / scale, -LARGEST), LARGEST)
        tl.store(rows + row * size + columns, scaled.to(rows.dtype.element_ty), mask=inside)


def quantise(x: Tensor) -> Quantised:
    """Implements `inference.model.layers.quantise.Quantise`."""
    x = x.contiguous()
    num_rows, size = x.shape
    rows = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    block = min(triton.next_power_of_2(size), _LARGEST_BLOCK)
    _quantise[(num_rows,)](
        x,
        rows,
        scales,
        size,
        LARGEST=FP8_MAX,
        SMALLEST_AMAX=SMALLEST_AMAX,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    return Quantised(rows, scales)
