"""Packs weights into the memory layout that gemm.h reads."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.layers.grouped import BLOCK, GroupedWeight, quantise_groups

WeightType = Literal["float32", "bfloat16", "int8", "int4"]
WEIGHT_TYPES: tuple[WeightType, ...] = ("float32", "bfloat16", "int8", "int4")
"""In the order of the enum `Type` of simd.h."""

_GROUP_SIZES: dict[WeightType, int] = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 4}
_BLOCK_GROUPS = BLOCK // 4
_HALF, _SINGLE, _NESTED = range(3)
_SYMMETRIC, _MINIMUM, _ZERO_POINT = range(3)
_VALUES_AT_ONCE = 1 << 20
"""Weights packed at a time."""


def cache_type(kind: WeightType) -> int:
    """The type of keys and values, in the enum `Type`, beside weights of this type."""
    return WEIGHT_TYPES.index("float32" if kind == "float32" else "bfloat16")


class MatrixPointers(ctypes.Structure):
    """The struct `Matrix` of gemm.h."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("weights", "bias", "order")],
        *[
            (name, ctypes.c_int32)
            for name in (
                "type",
                "num_outputs",
                "num_groups",
                "blocks_per_scale",
                "scale_type",
                "offset_kind",
            )
        ],
    ]


class PackedMatrix:
    """A matrix in tiles of 2 * lanes outputs, and the C struct that points to it."""

    def __init__(
        self,
        weight: Tensor | GroupedWeight,
        bias: Tensor | None,
        kind: WeightType,
        lanes: int,
        *,
        gated: bool = False,
    ) -> None:
        """`weight` [num_outputs, num_inputs]; `num_inputs` must be a multiple of `lanes`.

        Integers remain as they are, whatever `kind` is. Outputs are padded with zeros to whole
        tiles. With `gated`, the first half of the outputs are gates and the second half their
        inputs (SwiGLU): each tile gets equally many of both.
        """
        if isinstance(weight, Tensor):
            if kind == "int8" or kind == "int4":
                weight = quantise_groups(weight, 8 if kind == "int8" else 4)
        else:
            kind = "int8" if weight.bits == 8 else "int4"
        outputs = gated_order(weight.shape[0], lanes) if gated else None
        padding = -weight.shape[0] % (2 * lanes)
        if bias is not None:
            bias = F.pad(bias.float() if outputs is None else bias.float()[outputs], (0, padding))
        self._bias = bias
        self._order: Tensor | None = None
        self.num_outputs = weight.shape[0] + padding
        num_inputs = weight.shape[1]
        header = (0, 0, 0)
        if isinstance(weight, GroupedWeight):
            packed = _PackedGroups(weight, outputs, lanes)
            self._weights, header, num_inputs = packed.data, packed.header, packed.num_inputs
            self._order = None if weight.order is None else weight.order.int()
        else:
            weight = F.pad(weight if outputs is None else weight[outputs], (0, 0, 0, padding))
            stored = weight.float() if kind == "float32" else weight.bfloat16()
            group = _GROUP_SIZES[kind]
            tiles = stored.view(-1, 2 * lanes, num_inputs // group, group)
            self._weights = tiles.transpose(1, 2).contiguous()
        self.pointers = MatrixPointers(
            self._weights.data_ptr(),
            *(None if each is None else each.data_ptr() for each in (self._bias, self._order)),
            WEIGHT_TYPES.index(kind),
            self.num_outputs,
            num_inputs // _GROUP_SIZES[kind],
            *header,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory, with their scales."""
        return self._weights.nbytes


def gated_order(num_outputs: int, lanes: int) -> Tensor:
    """Which output of a gated matrix is at each place of its tiles, [num_outputs] int64."""
    return torch.arange(num_outputs).view(2, -1, lanes).transpose(0, 1).flatten()


class _PackedGroups:
    """The bytes of INT8 or INT4 weights: [num_tiles, num_scales, scales and offsets, codes]."""

    def __init__(self, weight: GroupedWeight, outputs: Tensor | None, lanes: int) -> None:
        """`outputs` is their order, None as they are. Temporary copies are of a few tiles each."""
        tile = 2 * lanes
        values, self._offset_kind = _values(weight)
        self._scale_type = _NESTED if weight.nested is not None else _scale_type(values)
        num_blocks = -(-weight.shape[1] // BLOCK)
        self.num_inputs = num_blocks * BLOCK
        self.header = (num_blocks // values[0].shape[1], self._scale_type, self._offset_kind)
        step = max(1, _VALUES_AT_ONCE // (tile * self.num_inputs)) * tile
        self.data = torch.empty(0, dtype=torch.uint8)
        for begin in range(0, weight.shape[0], step):
            end = min(begin + step, weight.shape[0])
            some = weight.rows(slice(begin, end) if outputs is None else outputs[begin:end])
            tiles = self._pack(some.padded(-(end - begin) % tile), tile)
            if begin == 0:
                self.data = tiles.new_empty(-(-weight.shape[0] // tile), *tiles.shape[1:])
            self.data[begin // tile :][: len(tiles)] = tiles

    def _pack(self, weight: GroupedWeight, tile: int) -> Tensor:
        codes = F.pad(weight.codes, (0, self.num_inputs - weight.shape[1]))
        num_blocks = self.num_inputs // BLOCK
        groups = codes.view(-1, tile, num_blocks, _BLOCK_GROUPS, 4).permute(0, 2, 3, 1, 4)
        if weight.bits == 4:
            # The first half of a block's groups is in the lower bits.
            low, high = groups.chunk(2, dim=2)
            groups = low | (high << 4)
        blocks = groups.reshape(-1, num_blocks, tile * BLOCK * weight.bits // 8)
        if weight.nested is not None:
            factors = (weight.nested.scale_factors, weight.nested.minimum_factors)
            columns = [each.view(-1, tile, num_blocks).transpose(1, 2) for each in factors]
            blocks = torch.cat((*columns, blocks), dim=2)
        values, _ = _values(weight)
        num_scales = values[0].shape[1]
        parts = []
        for each in values:
            stored = each if self._scale_type == _SINGLE else each.half()
            by_scale = stored.view(-1, tile, num_scales).transpose(1, 2)
            parts.append(by_scale.contiguous().view(torch.uint8))
        parts.append(blocks.reshape(len(blocks), num_scales, -1))
        return torch.cat(parts, dim=2)


def _values(weight: GroupedWeight) -> tuple[list[Tensor], int]:
    """The scales, the offsets if there are any, and their kind."""
    if weight.nested is not None:
        return [weight.nested.scales, weight.nested.minimums], _MINIMUM
    if weight.minimums is not None:
        return [weight.scales, weight.minimums], _MINIMUM
    if weight.zeros is not None:
        return [weight.scales, -weight.zeros], _ZERO_POINT
    return [weight.scales], _SYMMETRIC


def _scale_type(values: list[Tensor]) -> int:
    """Half precision if it represents all values."""
    return _HALF if all(torch.equal(each.half().float(), each) for each in values) else _SINGLE
