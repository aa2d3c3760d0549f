"""A product of rows and a matrix in which a row's numbers do not depend on how many rows there are.

Libraries have kernels for some numbers of rows, which sum in different orders. Here each element
is a sum over the inputs in their order, whatever the tile that it is computed in; only where there
are many inputs are they cut into parts, by the matrix's size alone, whose sums are added in order.
The order within one instruction is the device's: on Hopper it is the same for all tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_PART = 8192
"""Inputs that one program sums up; their number is what parts depend on, and nothing else."""

MAX_TILES = 65_536
"""Of a product in parts."""


class Device(NamedTuple):
    """What a GPU has, or the one that is there."""

    num_processors: int = 132
    shared_memory: int = 227 * 1024
    """Bytes that a program can have."""


class Tile(NamedTuple):
    """What one program computes."""

    rows: int
    outputs: int
    input_bytes: int
    """Of each row and output that are read at once."""
    num_warps: int
    num_stages: int


SMALL_TILES = (Tile(16, 64, 256, 4, 4), Tile(32, 64, 256, 4, 4))
LARGE_TILES = {
    Tile(64, 64, 256, 4, 4): 16,
    Tile(64, 128, 256, 4, 4): 22,
    Tile(128, 64, 256, 4, 4): 23,
    Tile(128, 128, 128, 8, 4): 32,
    Tile(256, 128, 128, 8, 3): 57,
}
"""With how long a program takes, in microseconds on an H200 for 4,096 inputs."""


@triton.jit
def _store(
    sums: tl.tensor,
    product: tl.tensor,
    place: tl.tensor,
    inside: tl.tensor,
    row_scales: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    output: tl.tensor,
    num_rows: int,
    num_outputs: int,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    if SCALES:
        sums *= tl.load(row_scales + row, mask=row < num_rows, other=0.0)
        sums *= tl.load(scales + output, mask=output < num_outputs, other=0.0)
    if BIASED:
        sums += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    tl.store(product + place, sums.to(product.dtype.element_ty), mask=inside)


@triton.jit(
    # No kernel of its own for a step whose number of rows happens to be a multiple of 16.
    do_not_specialize=["num_rows"],
)
def _product(
    x: tl.tensor,
    weight: tl.tensor,
    row_scales: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    product: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    num_rows: int,
    num_inputs: int,
    num_outputs: int,
    part: int,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    PARTS: tl.constexpr,
    MATRIX_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
) -> None:
    tile = tl.program_id(0)
    num_row_tiles = tl.cdiv(num_rows, ROWS)
    row = tile % num_row_tiles * ROWS + tl.arange(0, ROWS)
    output = tile // num_row_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    if MATRIX_FIRST:
        # The units want 64 rows of the first factor, and take as few as 8 columns of the second.
        row = row[None, :]
        output = output[:, None]
        sums = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    else:
        row = row[:, None]
        output = output[None, :]
        sums = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    is_row = row < num_rows
    is_output = output < num_outputs
    inside = is_row & is_output
    row_begin = row.to(tl.int64) * num_inputs
    output_begin = output.to(tl.int64) * num_inputs
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, num_inputs)
    for start in range(first, last, INPUTS):
        column = start + tl.arange(0, INPUTS)
        if MATRIX_FIRST:
            down, across = column[None, :], column[:, None]
            a = tl.load(weight + output_begin + down, mask=is_output & (down < last), other=0.0)
            b = tl.load(x + row_begin + across, mask=is_row & (across < last), other=0.0)
        else:
            down, across = column[None, :], column[:, None]
            a = tl.load(x + row_begin + down, mask=is_row & (down < last), other=0.0)
            b = tl.load(weight + output_begin + across, mask=is_output & (across < last), other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    place = row.to(tl.int64) * num_outputs + output
    if not PARTS:
        _store(
            sums, product, place, inside, row_scales, scales, bias, row, output, num_rows,
            num_outputs, SCALES, BIASED,
        )  # fmt: skip
        return
    size = tl.cast(num_rows, tl.int64) * num_outputs
    tl.store(partial + tl.program_id(1) * size + place, sums, mask=inside)
    tl.debug_barrier()  # all threads have stored before one of them says so
    # The part that comes last adds them all up, from the first on.
    if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1:
        tl.store(arrivals + tile, 0)
        total = tl.load(partial + place, mask=inside, other=0.0, cache_modifier=".cg")
        for number in range(1, tl.num_programs(1)):
            total += tl.load(
                partial + number * size + place, mask=inside, other=0.0, cache_modifier=".cg"
            )
        _store(
            total, product, place, inside, row_scales, scales, bias, row, output, num_rows,
            num_outputs, SCALES, BIASED,
        )  # fmt: skip


def tile_for(num_rows: int, num_outputs: int, num_parts: int, device: Device) -> Tile:
    """The tile whose programs take the device the least time, with what is read ahead cut to fit.

    Few rows are a pass over the matrix. With more, programs run side by side, one a processor, in
    as many turns as that takes.
    """
    if num_rows <= SMALL_TILES[-1].rows:
        tile = next(tile for tile in SMALL_TILES if num_rows <= tile.rows)
    else:

        def cost(tile: Tile) -> int:
            num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
            return (
                int(triton.cdiv(num_tiles * num_parts, device.num_processors)) * LARGE_TILES[tile]
            )

        tile = min(LARGE_TILES, key=cost)
    stage = (tile.rows + tile.outputs) * tile.input_bytes
    return tile._replace(num_stages=max(min(tile.num_stages, device.shared_memory // stage), 1))


class Products:
    """Multiplies on one device, one product at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = Device()
        if device.type == "cuda":
            utils = triton.runtime.driver.active.utils
            found = utils.get_device_properties(torch.cuda.current_device())
            self.device = Device(found["multiprocessor_count"], found["max_shared_mem"])
        self._arrivals = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
        """Parts of each tile that are there; zero again when all are."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        bias: Tensor | None = None,
        scales: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[num_rows, num_outputs] in `dtype`, or in the type of `x` [num_rows, num_inputs].

        `weight` [num_outputs, num_inputs] is in the type of `x`; where that is float8_e4m3fn, there
        are `scales` of the rows and of the outputs, in float32.
        """
        x = x.contiguous()
        num_rows, num_inputs = x.shape
        num_outputs = len(weight)
        num_parts = triton.cdiv(num_inputs, MAX_PART)
        tile = tile_for(num_rows, num_outputs, num_parts, self.device)
        num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
        part = triton.cdiv(triton.cdiv(num_inputs, num_parts), 128) * 128
        product = torch.empty((num_rows, num_outputs), dtype=dtype or x.dtype, device=x.device)
        partial = product
        if num_parts > 1:
            assert num_tiles <= MAX_TILES, f"at most {MAX_TILES} tiles, not {num_tiles}"
            shape = (num_parts, num_rows, num_outputs)
            partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        row_scales, output_scales = scales if scales is not None else (x, x)
        _product[(num_tiles, num_parts)](
            x,
            weight,
            row_scales,
            output_scales,
            x if bias is None else bias,
            product,
            partial,
            self._arrivals,
            num_rows,
            num_inputs,
            num_outputs,
            part,
            SCALES=scales is not None,
            BIASED=bias is not None,
            PARTS=num_parts > 1,
            MATRIX_FIRST=tile.rows < 128,
            ROWS=tile.rows,
            OUTPUTS=tile.outputs,
            INPUTS=tile.input_bytes // x.element_size(),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        return product
