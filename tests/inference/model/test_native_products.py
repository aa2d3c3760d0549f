"""Products with packed weights of four and eight bits, against the same arithmetic in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from inference.model.layers.grouped import Bits, GroupedWeight, NestedScales
from inference.model.native import library
from inference.model.native.packing import PackedMatrix
from tests.inference.model.native import VARIANTS, use_variant

NUM_OUTPUTS = 70
"""No whole tiles."""


@pytest.fixture(params=VARIANTS)
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The library of a CPU variant."""
    use_variant(request.param, monkeypatch)
    return library.load()


def made(
    bits: Bits, num_inputs: int, num_scales: int, *, offsets: str = "", is_half: bool = True
) -> GroupedWeight:
    """Random codes; those of the first outputs are all the largest, or all the smallest."""
    generator = torch.Generator().manual_seed(num_inputs)
    scales = torch.rand(NUM_OUTPUTS, num_scales, generator=generator) - 0.5
    zeros = torch.randint(0, (1 << bits) + 1, scales.shape, generator=generator).float()
    minimums = torch.randn(scales.shape, generator=generator).half().float()
    shape, most = (NUM_OUTPUTS, num_inputs), (1 << bits) - 1
    codes = torch.randint(0, most + 1, shape, generator=generator, dtype=torch.uint8)
    codes[0], codes[1] = most, 0
    return GroupedWeight(
        codes=codes,
        bits=bits,
        scales=scales.half().float() if is_half else scales,
        zeros=zeros if offsets == "zeros" else None,
        minimums=minimums if offsets == "minimums" else None,
    )


def nested(bits: Bits) -> GroupedWeight:
    """With scales and minimums of two groups each, of bytes."""
    weight = made(bits, 128, 2, offsets="minimums")
    assert weight.minimums is not None
    factors = torch.randint(0, 256, (2, NUM_OUTPUTS, 4), dtype=torch.uint8)
    wide = [
        each.repeat_interleave(2, 1) * factor
        for each, factor in zip((weight.scales, weight.minimums), factors, strict=True)
    ]
    parts = NestedScales(weight.scales, weight.minimums, *factors)
    return replace(weight, scales=wide[0], minimums=wide[1], nested=parts)


def weights() -> Iterator[GroupedWeight]:
    """Every form of scales and offsets, with groups of one block, of several and of all."""
    both: tuple[Bits, Bits] = (4, 8)
    for bits in both:
        for offsets in ("", "zeros", "minimums"):
            yield made(bits, 96, 3, offsets=offsets)
            yield made(bits, 128, 2, offsets=offsets, is_half=False)
        yield made(bits, 80, 1)
        yield nested(bits)
        weight = made(bits, 128, 4, offsets="zeros")
        yield replace(weight, order=torch.randperm(128))


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """The activations that the kernels multiply: integers with a scale for each 32."""
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 32)).unflatten(1, (-1, 32))
    largest = padded.abs().amax(dim=2, keepdim=True)
    factor = torch.where(largest > 0, 127.0 / largest, 0.0)
    back = (padded * factor).round().double() * (largest.double() / 127.0)
    return back.flatten(1)[:, : rows.shape[1]]


def test_products_are_those_of_the_weights(native: ctypes.CDLL) -> None:
    """Of few and many rows, with the largest activations, for every form."""
    for weight in weights():
        num_inputs = weight.shape[1]
        matrix = PackedMatrix(weight, None, "int4", native.weir_lanes())
        for num_rows in (1, 2, 3, 4, 7, 13):
            rows = torch.randn(num_rows, num_inputs)
            rows[0, :32] = torch.where(rows[0, :32] > 0, 5.0, -5.0)  # all of them 127 or -127
            rows[-1, 32:64] = 0
            found = torch.empty(num_rows, matrix.num_outputs)
            assert not native.weir_multiply(
                ctypes.byref(matrix.pointers),
                ctypes.c_void_p(rows.data_ptr()),
                num_rows,
                num_inputs,
                ctypes.c_void_p(found.data_ptr()),
            )
            given = rows if weight.order is None else rows[:, weight.order]
            in_order = replace(weight, order=None).expand().double()
            expected = rounded(given) @ in_order.T
            difference = (found[:, :NUM_OUTPUTS] - expected).abs().max()
            assert difference <= 1e-6 * expected.abs().max()
            assert not found[:, NUM_OUTPUTS:].any()


def test_packed_weights_are_the_same_numbers(native: ctypes.CDLL) -> None:
    """Every weight can be read again, to the rounding of one float32 operation."""
    for weight in weights():
        matrix = PackedMatrix(weight, None, "int4", native.weir_lanes())
        found = torch.empty(weight.shape)
        native.weir_expand_rows(
            ctypes.byref(matrix.pointers),
            (ctypes.c_int32 * NUM_OUTPUTS)(*range(NUM_OUTPUTS)),
            *weight.shape,
            ctypes.c_void_p(found.data_ptr()),
        )
        torch.testing.assert_close(found, weight.expand(), rtol=1e-6, atol=1e-5)
