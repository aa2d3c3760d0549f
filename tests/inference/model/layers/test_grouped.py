"""Matrices of integers in groups: rounding, and matrices joined from several."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference.model.layers.grouped import BLOCK, Bits, GroupedWeight, joined, quantise_groups
from inference.model.layers.linear import GroupedLinear


def made(bits: Bits, num_groups: int, kind: str = "") -> GroupedWeight:
    """Random codes [6, 64]."""
    scales = torch.rand(6, num_groups)
    return GroupedWeight(
        codes=torch.randint(0, 1 << bits, (6, 64), dtype=torch.uint8),
        bits=bits,
        scales=scales,
        zeros=torch.ones_like(scales) if kind == "zeros" else None,
        minimums=-torch.ones_like(scales) if kind == "minimums" else None,
    )


def test_eight_bits_round_to_the_nearest_of_255_steps() -> None:
    """For weights of any size; a block of zeros stays zero."""
    weight = torch.randn(40, 100) * torch.logspace(-6, 6, 40)[:, None]
    weight[3, :64] = 0
    found = quantise_groups(weight, 8)
    assert found.shape == (40, 128)  # whole blocks
    blocks = torch.nn.functional.pad(weight, (0, 28)).view(40, -1, BLOCK)
    steps = blocks.abs().amax(2, keepdim=True) / 127
    error = (found.expand().view(blocks.shape) - blocks).abs()
    # The scales are rounded up to half precision, of which the smallest is 2^-24.
    assert (error <= steps * 0.501 + 2.0**-25).all()
    assert not found.expand()[3, :64].any()


def test_four_bits_have_the_better_of_several_scales() -> None:
    """The squared error is smaller than with the scale of the largest weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=generator)
    weight[5, 32:64] = 0
    found = quantise_groups(weight, 4)
    assert found.codes.max() <= 15
    blocks = weight.view(64, -1, BLOCK)
    extremes = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    steps = torch.where(extremes == 0, 1.0, extremes / -8)
    simple = (blocks / steps).round().clamp(-8, 7) * steps
    error = (found.expand() - weight).square().sum()
    assert error < 0.93 * (simple - blocks).square().sum()
    assert not found.expand()[5, 32:64].any()


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_are_half_precision_where_it_has_their_range(bits: Bits) -> None:
    """They take half the memory; larger ones are kept in single precision."""
    weight = torch.randn(4, 64)
    scales = quantise_groups(weight, bits).scales
    assert torch.equal(scales.half().float(), scales)
    large = quantise_groups(weight * 1e9, bits)
    torch.testing.assert_close(large.scales, scales * 1e9, rtol=1e-2, atol=0)


def test_joined_matrices_have_the_rows_of_all() -> None:
    """Also of different bits, and with zero points on one side only."""
    for parts in (
        [made(4, 2), made(4, 2)],
        [made(4, 2), made(8, 2)],
        [made(4, 2, "zeros"), made(4, 2), made(8, 2)],
        [made(4, 1, "minimums"), made(8, 1, "minimums")],
    ):
        whole = joined(parts)
        assert whole is not None
        assert torch.equal(whole.expand(), torch.cat([part.expand() for part in parts]))
        for part, found in zip(parts, whole.split([6] * len(parts)), strict=True):
            assert torch.equal(part.expand(), found.expand())


def test_matrices_of_other_groups_are_not_joined() -> None:
    """Their scales, minimums or order of inputs do not fit in one matrix."""
    plain, with_minimums = made(4, 2), made(4, 2, "minimums")
    for other in (made(4, 1), with_minimums, replace(plain, order=torch.arange(64))):
        assert joined([plain, other]) is None
    assert joined([with_minimums, made(4, 2, "zeros")]) is None


def test_eight_bits_represent_four() -> None:
    """Exactly, with and without offsets."""
    for kind in ("", "zeros", "minimums"):
        weight = made(4, 2, kind)
        assert torch.equal(weight.in_eight_bits().expand(), weight.expand())


def test_a_product_by_torch_expands_the_weights() -> None:
    """In the type of the activations; padded inputs are left out."""
    weight, bias = torch.randn(6, 40), torch.randn(6)
    x = torch.randn(3, 40).bfloat16()
    linear = GroupedLinear(quantise_groups(weight, 8), bias.bfloat16())
    expected = torch.nn.functional.linear(x.float(), weight, bias)
    torch.testing.assert_close(linear(x).float(), expected, rtol=0.05, atol=0.2)
