"""Quantisation of rows to eight-bit floats, and of weights to int8: torch's implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest finite value of float8_e4m3fn."""

SMALLEST_AMAX = 1e-12
"""Lower bound of a row's largest magnitude: avoids a division by zero."""

BLOCK = 32
"""Inputs that share a scale in int8, as in llama.cpp's Q8_0. A scale for a whole row of weights or
activations is too coarse: one large value leaves the others few of the 255 steps."""


class Quantised(NamedTuple):
    """Rows in float8_e4m3fn, [num_rows, size], with the scale of each row."""

    rows: Tensor
    scales: Tensor
    """[num_rows, 1] in float32; multiply the rows by them to dequantise."""


Quantise = Callable[[Tensor], Quantised]
"""Quantises [num_rows, size], one scale per row."""


def quantise_rows(x: Tensor) -> Quantised:
    """Implements `Quantise`: scales each row so that its largest magnitude becomes `FP8_MAX`."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_AMAX) / FP8_MAX
    return Quantised((wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales)


def quantise_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [num_outputs, num_inputs] as int8, and a scale for each `BLOCK` of inputs.

    The scales [num_outputs, num_blocks] are bfloat16, rounded up so that no weight exceeds 127. The
    weights are divided by the rounded scales, so the rounding costs next to no accuracy.
    """
    blocks = weight.float().view(len(weight), -1, BLOCK)
    exact = blocks.abs().amax(dim=2).clamp(min=SMALLEST_AMAX) / 127.0
    nearest = exact.bfloat16()
    is_low = (nearest.float() < exact).to(torch.int16)
    scales = (nearest.view(torch.int16) + is_low).view(torch.bfloat16)
    whole = (blocks / scales.float()[..., None]).round().to(torch.int8)
    return whole.view(weight.shape), scales
