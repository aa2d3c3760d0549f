"""Unpacks integers of four or eight bits from 32-bit words, the lowest bits first."""

from __future__ import annotations

import torch
from torch import Tensor


def unpack_columns(words: Tensor, bits: int) -> Tensor:
    """[num_rows, num_words] to [num_rows, num_words * (32 / bits)], int32."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words.int().unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """[num_words, num_columns] to [num_words * (32 / bits), num_columns], int32."""
    return unpack_columns(words.t().contiguous(), bits).t().contiguous()
