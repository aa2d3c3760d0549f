"""Packs weights into the memory layout that gemm.h reads."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.layers.quantise import BLOCK, quantise_blocks

WeightType = Literal["float32", "bfloat16", "int8"]
GROUP_SIZES: dict[WeightType, int] = {"float32": 1, "bfloat16": 2, "int8": 4}


class MatrixPointers(ctypes.Structure):
    """The struct `Matrix` of gemm.h."""

    _fields_ = [
        ("weights", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int),
        ("num_groups", ctypes.c_int),
    ]


class PackedMatrix:
    """A matrix in tiles of 2 * lanes outputs, and the C struct that points to it."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kind: WeightType,
        lanes: int,
        *,
        gated: bool = False,
    ) -> None:
        """`weight` [num_outputs, num_inputs]; `num_inputs` must be a multiple of `lanes`.

        Outputs are padded with zeros to whole tiles. With `gated`, the first half of the outputs
        are gates and the second half their inputs (SwiGLU): each tile gets equally many of both.
        """
        weight = weight.float()
        bias = None if bias is None else bias.float()
        if gated:
            weight = _alternate(weight, lanes)
            bias = None if bias is None else _alternate(bias, lanes)
        padding = -len(weight) % (2 * lanes)
        weight = F.pad(weight, (0, 0, 0, padding))
        self._bias = None if bias is None else F.pad(bias, (0, padding)).contiguous()
        self.num_outputs = len(weight)
        group = GROUP_SIZES[kind]
        if kind == "int8":
            weight = F.pad(weight, (0, -weight.shape[1] % BLOCK))
            self._weights = _in_blocks(weight, lanes)
        else:
            stored = weight if kind == "float32" else weight.bfloat16()
            tiles = stored.view(-1, 2 * lanes, weight.shape[1] // group, group)
            self._weights = tiles.transpose(1, 2).contiguous()
        self.pointers = MatrixPointers(
            self._weights.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            self.num_outputs,
            weight.shape[1] // group,
        )


def _in_blocks(weight: Tensor, lanes: int) -> Tensor:
    """The bytes [num_tiles, num_blocks, ...] of INT8 weights: weights of a block, then scales."""
    tile, num_blocks = 2 * lanes, weight.shape[1] // BLOCK
    whole, scales = quantise_blocks(weight)
    # The instructions multiply unsigned by signed bytes: the weights are the unsigned ones.
    stored = (whole.short() + 128).to(torch.uint8)
    groups = stored.view(-1, tile, num_blocks, BLOCK // 4, 4).permute(0, 2, 3, 1, 4)
    # Words of two scales, of the same lane in the tile's two vectors.
    pairs = scales.view(-1, 2, lanes, num_blocks).permute(0, 3, 2, 1).contiguous()
    parts = (groups.reshape(-1, num_blocks, BLOCK * tile), pairs.view(torch.uint8).flatten(2))
    return torch.cat(parts, dim=2).contiguous()


def _alternate(rows: Tensor, lanes: int) -> Tensor:
    """Interleaves the two halves of the rows [2 * n, ...], `lanes` rows at a time."""
    halves = rows.view(2, -1, lanes, *rows.shape[1:])
    return halves.transpose(0, 1).reshape(rows.shape)
