"""Eight-bit rows with torch's operations."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.model.layers.operations import Quantised

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest number of float8_e4m3fn."""

SMALLEST_AMAX = 1e-12
"""Rows of zeros are divided by no less."""


def quantise_rows(x: Tensor) -> Quantised:
    """The largest value of a row becomes the largest that there is."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_AMAX) / FP8_MAX
    return Quantised((wide / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales)
