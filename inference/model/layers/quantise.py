"""Quantisation of rows to eight-bit floats: torch's implementation."""

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
