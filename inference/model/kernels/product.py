"""A batch-invariant matrix product: a row's result does not depend on the number of rows.

Libraries choose a kernel by the number of rows, and their kernels sum in different orders. This
kernel sums over the inputs in ascending order, whatever the tile. Long sums are split into parts,
by the matrix's size alone, and the parts are added in order. The device determines the order
within one instruction: on Hopper it is the same for all tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_PART = 8192
"""Most inputs that one program sums up; the number of parts depends on nothing else."""

MAX_TILES = 65_536
"""Most tiles of a product in parts."""


class Device(NamedTuple):
    """Properties of a GPU; the defaults are an H200's."""

    num_processors: int = 132
    shared_memory: int = 227 * 1024
    """Bytes per program."""


class Tile(NamedTuple):
    """The part of a product that one program computes, and its launch options."""

    rows: int
    outputs: int
    input_bytes: int
    """Bytes of each row and output that one iteration reads."""
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
"""A program's duration by tile, in microseconds on an H200 for 4,096 inputs."""


@triton.jit
def _sums(
    x: tl.tensor,
    weight: tl.tensor,
    row: tl.tensor,
    output: tl.tensor,
    is_row: tl.tensor,
    is_output: tl.tensor,
    num_inputs: int,
    part: int,
    MATRIX_FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
) -> tl.tensor:
    """The sums over the program's part of the inputs; [OUTPUTS, ROWS] if MATRIX_FIRST."""
    if MATRIX_FIRST:
        sums = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    else:
        sums = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    row_begin = row.to(tl.int64) * num_inputs
    output_begin = output.to(tl.int64) * num_inputs
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, num_inputs)
    for start in range(first, last, INPUTS):
        column = start + tl.arange(0, INPUTS)
        across, down = column[None, :], column[:, None]
        if MATRIX_FIRST:
            a = tl.load(weight + output_begin + across, mask=is_output & (across < last), other=0.0)
            b = tl.load(x + row_begin + down, mask=is_row & (down < last), other=0.0)
        else:
            a = tl.load(x + row_begin + across, mask=is_row & (across < last), other=0.0)
            b = tl.load(weight + output_begin + down, mask=is_output & (down < last), other=0.0)
        sums = tl.dot(a, b, sums, input_precision="ieee")
    return sums


@triton.jit
def _store(
    sums: tl.tensor,
    product: tl.tensor,
    offsets: tl.tensor,
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
    tl.store(product + offsets, sums.to(product.dtype.element_ty), mask=inside)


@triton.jit(
    # Do not compile another kernel for a step whose number of rows is a multiple of 16.
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
        # Tensor cores need 64 rows in the first factor, but only 8 columns in the second.
        row = row[None, :]
        output = output[:, None]
    else:
        row = row[:, None]
        output = output[None, :]
    is_row = row < num_rows
    is_output = output < num_outputs
    inside = is_row & is_output
    sums = _sums(
        x, weight, row, output, is_row, is_output, num_inputs, part,
        MATRIX_FIRST, ROWS, OUTPUTS, INPUTS,
    )  # fmt: skip
    offsets = row.to(tl.int64) * num_outputs + output
    if not PARTS:
        _store(
            sums, product, offsets, inside, row_scales, scales, bias, row, output, num_rows,
            num_outputs, SCALES, BIASED,
        )  # fmt: skip
        return
    size = tl.cast(num_rows, tl.int64) * num_outputs
    tl.store(partial + tl.program_id(1) * size + offsets, sums, mask=inside)
    tl.debug_barrier()  # all threads must have stored before one of them signals the arrival
    # The program that arrives last adds all parts, from the first to the last.
    if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1:
        tl.store(arrivals + tile, 0)
        total = tl.load(partial + offsets, mask=inside, other=0.0, cache_modifier=".cg")
        for number in range(1, tl.num_programs(1)):
            total += tl.load(
                partial + number * size + offsets, mask=inside, other=0.0, cache_modifier=".cg"
            )
        _store(
            total, product, offsets, inside, row_scales, scales, bias, row, output, num_rows,
            num_outputs, SCALES, BIASED,
        )  # fmt: skip


def tile_for(num_rows: int, num_outputs: int, num_parts: int, device: Device) -> Tile:
    """The tile with the lowest estimated time; fewer pipeline stages if shared memory is short.

    With few rows the time is that of reading the matrix, so the smallest tile is best. With more
    rows each multiprocessor runs one program at a time: the time is the number of waves times a
    program's duration.
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
    """Computes products on one device, one at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = Device()
        if device.type == "cuda":
            utils = triton.runtime.driver.active.utils
            found = utils.get_device_properties(torch.cuda.current_device())
            self.device = Device(found["multiprocessor_count"], found["max_shared_mem"])
        self._arrivals = torch.zeros(MAX_TILES, dtype=torch.int32, device=device)
        """How many parts of each tile are complete; reset to zero after the last one."""

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

        `weight` [num_outputs, num_inputs] has the type of `x`. If that is float8_e4m3fn, `scales`
        are those of the rows and of the outputs, in float32.
        """
        x = x.contiguous()
        num_rows, num_inputs = x.shape
        num_outputs = len(weight)
        num_parts = triton.cdiv(num_inputs, MAX_PART)
        tile = tile_for(num_rows, num_outputs, num_parts, self.device)
        num_tiles = triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_outputs, tile.outputs)
        part = triton.cdiv(triton.cdiv(num_inputs, num_parts), 128) * 128
        product = partial = x.new_empty((num_rows, num_outputs), dtype=dtype or x.dtype)
        if num_parts > 1:
            assert num_tiles <= MAX_TILES, f"at most {MAX_TILES} tiles, not {num_tiles}"
            partial = x.new_empty((num_parts, num_rows, num_outputs), dtype=torch.float32)
        row_scales, output_scales = scales if scales is not None else (x, x)
        _product[(num_tiles, num_parts)](
            x, weight, row_scales, output_scales, x if bias is None else bias,
            product, partial, self._arrivals,
            num_rows, num_inputs, num_outputs, part,
            SCALES=scales is not None, BIASED=bias is not None, PARTS=num_parts > 1,
            MATRIX_FIRST=tile.rows < 128,
            ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=tile.input_bytes // x.element_size(),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        return product
