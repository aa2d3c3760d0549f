"""Tiles and splits of the attention kernel, and tiles of the matrix product."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="NO KERNELS ARE TESTED: triton is not installed")

from inference.model.kernels.attention.combine import MAX_SPLITS
from inference.model.kernels.attention.launches import Launches, part_length
from inference.model.kernels.product import LARGE_TILES, Device, tile_for
from inference.runner.step_inputs import make_inputs
from tests.inference.steps import Span, make_step

CPU = torch.device("cpu")
H200 = 2 * 132


def launches(
    spans: list[Span],
    num_heads: int = 32,
    num_kv_heads: int = 8,
    head_bytes: int = 256,
    part: int = 0,
) -> list[tuple[int, ...]]:
    """(tiles, rows per tile, splits) of each launch for a step of these spans."""
    step = make_step(spans, 16, num_blocks=sum(-(-sum(span) // 16) for span in spans))
    made = Launches(num_heads=num_heads, num_kv_heads=num_kv_heads, num_programs=H200, part=part)
    return [
        (each.num_tiles, each.tile_rows, each.num_splits)
        for each in made.for_step(make_inputs(step, 16, CPU), 16, head_bytes)
    ]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        # One stream: without splits there would be 8 programs, one per KV head.
        ([(4000, 1)], [(1, 16, MAX_SPLITS)]),
        # No part has fewer than 64 keys.
        ([(100, 1)], [(1, 16, 2)]),
        ([(4000, 1)] * 8, [(1, 16, 4)]),
        ([(100, 1)] * 64, [(1, 16, 1)]),
        # A prompt: 16 queries times 4 heads of a group in a tile.
        ([(0, 2048)], [(128, 64, 1)]),
        # Draft tokens: the keys of nine queries are split, too.
        ([(4000, 9)], [(1, 64, MAX_SPLITS)]),
        ([(4000, 2)], [(1, 16, MAX_SPLITS)]),
        # Both kinds in one step.
        ([(4000, 1)] * 40 + [(0, 640)], [(1, 16, 1), (40, 64, 1)]),
    ],
)
def test_few_programs_are_split(spans: list[Span], expected: list[tuple[int, ...]]) -> None:
    """The keys are split until the programs fill the GPU."""
    assert launches(spans) == expected


@pytest.mark.parametrize(
    ("heads", "rows"), [((8, 8), 16), ((28, 4), 16), ((64, 2), 32), ((71, 1), 128)]
)
def test_a_tile_holds_a_whole_group(heads: tuple[int, int], rows: int) -> None:
    """A tile contains whole groups of query heads, also large or odd ones."""
    [(_, tile_rows, _)] = launches([(100, 1)], *heads)
    assert tile_rows == rows
    [(num_tiles, tile_rows, _)] = launches([(0, 100)], *heads)
    assert num_tiles * (tile_rows // (heads[0] // heads[1])) >= 100


def test_large_heads_have_smaller_tiles() -> None:
    """Keys and values also need shared memory."""
    assert [launches([(0, 300)], head_bytes=size)[0][1] for size in (128, 160, 512, 1024)] == [
        64,
        64,
        64,
        32,
    ]


@pytest.mark.parametrize(
    ("spans", "num_splits"),
    [([(1000, 1)], 4), ([(250, 1)], 1), ([(1000, 1)] * 40, 1), ([(0, 2048)], 1), ([(300, 1)], 2)],
)
def test_parts_of_fixed_length_use_one_tile_size(spans: list[Span], num_splits: int) -> None:
    """If the keys are split, each part is a split."""
    [(_, tile_rows, found)] = launches(spans, part=256)
    assert tile_rows == 64
    assert found == num_splits


def test_no_context_exceeds_the_maximum_of_parts() -> None:
    """Parts get longer with the longest context, but are at least 256 keys."""
    assert [part_length(size) for size in (100, 8192, 8193, 131_072)] == [256, 256, 512, 4096]
    for size in (1000, 40_000, 1_000_000):
        assert -(-size // part_length(size)) <= MAX_SPLITS


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "expected"),
    [
        (1, 4096, (16, 64)),
        (17, 28_672, (32, 64)),
        (64, 4096, (64, 64)),
        # Smaller tiles would need two waves of programs.
        (128, 6144, (64, 128)),
        (256, 28_672, (256, 128)),
        (2048, 4096, (256, 128)),
    ],
)
def test_tiles_minimise_the_time(
    num_rows: int, num_outputs: int, expected: tuple[int, int]
) -> None:
    """For an H200."""
    tile = tile_for(num_rows, num_outputs, 1, Device())
    assert (tile.rows, tile.outputs) == expected


def test_tiles_fit_in_the_shared_memory() -> None:
    """A GPU with less shared memory gets fewer pipeline stages."""
    small = Device(num_processors=58, shared_memory=99 * 1024)
    for num_rows in (1, 32, 64, 128, 256, 4096):
        for num_outputs in (64, 4096, 128_256):
            tile = tile_for(num_rows, num_outputs, 1, small)
            assert (tile.rows + tile.outputs) * tile.input_bytes * tile.num_stages <= 99 * 1024
            assert tile.num_stages >= 2 or tile.rows == max(each.rows for each in LARGE_TILES)
