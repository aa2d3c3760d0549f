"""Matrices of integers with four or eight bits and a scale for each group of inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.layers.quantise import SMALLEST_AMAX

Bits = Literal[4, 8]

BLOCK = 32
"""Inputs that share a scale in weights quantised here, as in llama.cpp's Q8_0 and Q4_0. A scale for
a whole row of weights or activations is too coarse: one large value leaves the others few steps."""

_CANDIDATES = (-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9)
"""Steps that the largest weight of a block may be beyond (or inside) the largest code."""

_VALUES_AT_ONCE = 1 << 17
"""Weights quantised at a time: their intermediate values stay in the CPU's cache."""


class NestedScales(NamedTuple):
    """Scales and minimums as products of a number and a byte, the number for several groups."""

    scales: Tensor
    """[num_outputs, num_numbers] in float32, like `minimums`."""
    minimums: Tensor
    scale_factors: Tensor
    """[num_outputs, num_groups] in uint8, like `minimum_factors`."""
    minimum_factors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedWeight:
    """A matrix [num_outputs, num_inputs] of codes without sign.

    weight = scale * (code - zero) + minimum, with those of the output and the group of inputs.
    """

    codes: Tensor
    """[num_outputs, num_inputs] in uint8, from 0 to 2^bits - 1."""
    bits: Bits
    scales: Tensor
    """[num_outputs, num_groups] in float32; groups are `num_inputs / num_groups` neighbours."""
    zeros: Tensor | None = None
    """Like `scales`. None: 2^(bits - 1), or 0 with `minimums`."""
    minimums: Tensor | None = None
    """Like `scales`. None: 0."""
    nested: NestedScales | None = None
    """A smaller form of `scales` and `minimums`."""
    order: Tensor | None = None
    """[num_inputs] in int64: which input each column of codes is. None: in order."""

    @property
    def shape(self) -> tuple[int, int]:
        """num_outputs, num_inputs."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def middle(self) -> int:
        """The code of a weight of zero, without `zeros` and `minimums`."""
        return 1 << (self.bits - 1)

    @property
    def fits_kernels(self) -> bool:
        """Whether the native kernels can multiply it as it is: with groups of whole blocks."""
        return self.group_size % BLOCK == 0 or self.scales.shape[1] == 1

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights, computed in this type."""
        codes = self.codes.to(dtype).view(len(self.codes), self.scales.shape[1], -1)
        if self.minimums is not None:
            values = torch.addcmul(
                self.minimums.to(dtype)[..., None], codes, self.scales.to(dtype)[..., None]
            )
        else:
            zeros = self.middle if self.zeros is None else self.zeros.to(dtype)[..., None]
            values = (codes - zeros) * self.scales.to(dtype)[..., None]
        values = values.view(self.codes.shape)
        return values if self.order is None else values[:, torch.argsort(self.order)]

    def rows(self, outputs: Tensor | slice) -> GroupedWeight:
        """These outputs alone, in this order."""
        return self._map(lambda each: each[outputs])

    def split(self, sizes: Sequence[int]) -> list[GroupedWeight]:
        """Parts with these numbers of outputs."""
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return [self.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    def padded(self, num_outputs: int) -> GroupedWeight:
        """With further outputs of weights that are zero."""
        return self._map(lambda each: F.pad(each, (0, 0, 0, num_outputs)))

    def in_eight_bits(self) -> GroupedWeight:
        """The same weights as codes of eight bits."""
        if self.bits == 8:
            return self
        is_symmetric = self.zeros is None and self.minimums is None
        return replace(self, bits=8, codes=self.codes + (128 - self.middle) * is_symmetric)

    def with_zeros(self) -> GroupedWeight:
        """The same weights with explicit `zeros`, if without `minimums`."""
        if self.zeros is not None or self.minimums is not None:
            return self
        return replace(self, zeros=torch.full_like(self.scales, self.middle))

    def _map(self, function: Callable[[Tensor], Tensor]) -> GroupedWeight:
        return replace(
            self,
            codes=function(self.codes),
            scales=function(self.scales),
            zeros=None if self.zeros is None else function(self.zeros),
            minimums=None if self.minimums is None else function(self.minimums),
            nested=None if self.nested is None else NestedScales(*map(function, self.nested)),
        )


def joined(parts: Sequence[GroupedWeight]) -> GroupedWeight | None:
    """The outputs of all parts, exactly; None if that cannot be one matrix of groups."""
    if len({part.bits for part in parts}) > 1:
        parts = [part.in_eight_bits() for part in parts]
    if any(part.zeros is not None for part in parts):
        parts = [part.with_zeros() for part in parts]
    first = parts[0]
    for part in parts[1:]:
        if (
            part.group_size != first.group_size
            or (part.zeros is None) != (first.zeros is None)
            or (part.minimums is None) != (first.minimums is None)
            or not _is_same_order(part.order, first.order)
        ):
            return None
    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts]),
        zeros=_joined_values([part.zeros for part in parts]),
        minimums=_joined_values([part.minimums for part in parts]),
        nested=_joined_nested([part.nested for part in parts]),
    )


def _joined_values(parts: Sequence[Tensor | None]) -> Tensor | None:
    values = [part for part in parts if part is not None]
    return torch.cat(values) if values else None


def _joined_nested(parts: Sequence[NestedScales | None]) -> NestedScales | None:
    nested = [part for part in parts if part is not None]
    if len(nested) < len(parts) or len({part.scales.shape[1] for part in nested}) > 1:
        return None
    return NestedScales(*(torch.cat(each) for each in zip(*nested, strict=True)))


def _is_same_order(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def quantise_groups(weight: Tensor, bits: Bits) -> GroupedWeight:
    """Rounds weights [num_outputs, num_inputs] to codes with one scale for each `BLOCK` of inputs.

    Inputs are padded with zeros to whole blocks; scales fit half precision where that is possible.
    In eight bits a block's largest magnitude is the largest code; in four bits the scale is the one
    with the least squared error of some near that.
    """
    blocks = F.pad(weight, (0, -weight.shape[1] % BLOCK)).view(len(weight), -1, BLOCK)
    codes = torch.empty(blocks.shape, dtype=torch.uint8)
    scales = torch.empty(blocks.shape[:2])
    step = max(1, _VALUES_AT_ONCE // blocks[0].numel())
    for begin in range(0, len(blocks), step):
        rows = slice(begin, begin + step)
        some = blocks[rows].float()
        scales[rows] = _scales_of_eight_bits(some) if bits == 8 else _scales_of_four_bits(some)
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        whole = (some / scales[rows, :, None]).round_().clamp_(low, high)
        codes[rows] = (whole - low).to(torch.uint8)
    return GroupedWeight(codes=codes.view(len(weight), -1), bits=bits, scales=scales)


def _scales_of_eight_bits(blocks: Tensor) -> Tensor:
    """Rounded up, so that no weight exceeds 127 steps."""
    exact = blocks.abs().amax(dim=2).clamp(min=SMALLEST_AMAX) / 127.0
    nearest = exact.half()
    is_low = (nearest.float() < exact).to(torch.int16)
    return _half_if_finite((nearest.view(torch.int16) + is_low).view(torch.float16), exact)


def _scales_of_four_bits(blocks: Tensor) -> Tensor:
    """The best of some scales near the one at which the largest weight has the largest code, -8."""
    place = blocks.abs().argmax(dim=2, keepdim=True)
    extreme = blocks.gather(2, place)
    extreme = torch.where(extreme.abs() < SMALLEST_AMAX, SMALLEST_AMAX, extreme)
    best, least = torch.zeros_like(extreme), torch.zeros_like(extreme)
    for beyond in _CANDIDATES:
        codes = (blocks * (-(8 + beyond) / extreme)).round_().clamp_(-8, 7)
        products = (blocks * codes).sum(dim=2, keepdim=True)
        squares = codes.square_().sum(dim=2, keepdim=True)
        # With its best scale, products / squares, a choice of codes leaves an error of
        # sum(weight^2) - products^2 / squares.
        gain = products * products / squares
        is_better = gain > least
        best = torch.where(is_better, products / squares, best)
        least = torch.where(is_better, gain, least)
    exact = best[..., 0]
    nearest = exact.half()
    nearest[nearest == 0] = torch.finfo(torch.float16).smallest_normal
    return _half_if_finite(nearest, exact)


def _half_if_finite(nearest: Tensor, exact: Tensor) -> Tensor:
    return torch.where(nearest.isfinite(), nearest.float(), exact)
