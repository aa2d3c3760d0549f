"""Paged attention in one pass over the blocks of each sequence (arXiv:2205.14135, 2309.06180).

One kernel for both: a chunk of a prompt, and a single token. A program takes a tile of queries of
one sequence, with all the query heads that share a KV head, so that keys and values are read once
for the group. Where that makes few programs, the keys are split over several, each of which leaves
a partial result for `combine`. All lengths are read on the device, so a launch can be captured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference.model.kernels.attention.combine import all_seen, combine, nothing_seen, seen_too
from inference.runner.step_inputs import StepInputs

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Sequences whose queries go through the kernel together, and how they are cut up."""

    first_sequence: int
    num_sequences: int
    first_row: int
    num_rows: int
    num_tiles: int
    """Of queries, for the sequence that has the most."""
    tile_rows: int
    """Queries times query heads of a group, a power of two, at least 16."""
    num_splits: int
    part: int = 0
    """Keys of a part, from the first key on; 0: what is seen is cut into equal ones. With parts of
    a length a query sees the same numbers however it is computed."""


@triton.jit
def _see(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    position: tl.tensor,
    low: int,
    high: int,
    kv_head: int,
    scale: float,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> tl.tensor:
    """What rows see of keys [low, high): values [ROWS, DIM], and the logarithm of their weight."""
    dims = tl.arange(0, DIM)
    is_dim = dims < HEAD_DIM
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    sums = tl.zeros([ROWS, DIM], dtype=tl.float32)
    for start in range(low, high, KEYS):
        key = start + tl.arange(0, KEYS)
        is_key = key < high
        block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        stored = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM
        k = tl.load(
            keys + stored[None, :] + dims[:, None],
            mask=is_key[None, :] & is_dim[:, None],
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        sees = is_key[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            sees = sees & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(sees, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that has seen nothing yet would subtract infinity from infinity.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(peak - base)
        v = tl.load(
            values + stored[:, None] + dims[None, :],
            mask=is_key[:, None] & is_dim[None, :],
            other=0.0,
        )
        sums = sums * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(weights, axis=1)
        peak = new_peak
    # Rows that are no query, and parts without keys, have seen nothing.
    total = tl.where(total > 0.0, total, 1.0)
    return sums / total[:, None], peak + tl.log2(total)


@triton.jit(
    # No kernel of its own for a step whose numbers happen to be multiples of 16, or whose inputs
    # happen to begin at one.
    do_not_specialize=["first_sequence", "first_row", "num_tiles", "num_splits", "table_stride"],
    do_not_specialize_on_alignment=["tables", "contexts", "begins"],
)
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    seen: tl.tensor,
    partial: tl.tensor,
    logarithms: tl.tensor,
    tables: tl.tensor,
    contexts: tl.tensor,
    begins: tl.tensor,
    scale: float,
    first_sequence: int,
    first_row: int,
    num_tiles: int,
    num_splits: int,
    table_stride: int,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    QUERIES: tl.constexpr = ROWS // GROUP
    sequence = first_sequence + tl.program_id(0) // num_tiles
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    end = tl.load(begins + sequence + 1)
    # The last tile first: it sees the most keys, and nobody waits for it at the end.
    tile = num_tiles - 1 - tl.program_id(0) % num_tiles
    begin = tl.load(begins + sequence) + tile * QUERIES
    if begin >= end:
        return
    context = tl.load(contexts + sequence)
    offset = context - end  # of a row's position against its number
    table = tables + sequence.to(tl.int64) * table_stride

    rows = tl.arange(0, ROWS)
    query = begin + rows // GROUP
    position = query + offset
    head = kv_head * GROUP + rows % GROUP
    is_query = (rows < QUERIES * GROUP) & (query < end)
    dims = tl.arange(0, DIM)
    place = (query.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    inside = is_query[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(queries + place[:, None] + dims[None, :], mask=inside, other=0.0)

    # Keys [lowest, highest) are what some query of the tile sees; this program's are [low, high).
    highest = tl.minimum(begin + QUERIES, end) + offset
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(begin + offset - WINDOW + 1, 0) // KEYS * KEYS
    if PART > 0:
        low = tl.maximum(split * PART, lowest)
        high = tl.minimum(split * PART + PART, highest)
    else:
        share = tl.cdiv(tl.cdiv(highest - lowest, num_splits), KEYS) * KEYS
        low = lowest + split * share
        high = tl.minimum(low + share, highest)

    if PART > 0 and not SPLITS:
        # One program for all parts: what `combine` does, as it does it.
        peak, total, sums = nothing_seen(ROWS, DIM)
        for first in range(lowest // PART * PART, highest, PART):
            result, logarithm = _see(
                q, keys, values, table, position, tl.maximum(first, lowest),
                tl.minimum(first + PART, highest), kv_head, scale,
                NUM_KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, WINDOW, ROWS, KEYS,
            )  # fmt: skip
            peak, total, sums = seen_too(peak, total, sums, logarithm, result)
        result = all_seen(total, sums)
    else:
        result, logarithm = _see(
            q, keys, values, table, position, low, high, kv_head, scale,
            NUM_KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, WINDOW, ROWS, KEYS,
        )  # fmt: skip
    if SPLITS:
        part = ((query - first_row).to(tl.int64) * NUM_HEADS + head) * num_splits + split
        tl.store(logarithms + part, logarithm, mask=is_query)
        if low < high:  # `combine` reads nothing of a part whose logarithm is minus infinity
            tl.store(partial + part[:, None] * HEAD_DIM + dims[None, :], result, mask=inside)
    else:
        tl.store(
            seen + place[:, None] + dims[None, :], result.to(seen.dtype.element_ty), mask=inside
        )


def attend(
    queries: Tensor,
    cache: tuple[Tensor, Tensor],
    seen: Tensor,
    inputs: StepInputs,
    launch: Launch,
    *,
    block_size: int,
    window: int | None,
) -> None:
    """Writes the launch's rows of `seen`; `queries` and it are [num_tokens, num_heads, head_dim].

    `cache` is a layer's keys and values, [num_slots, num_kv_heads, head_dim], this step's included.
    """
    keys, values = cache
    _, num_kv_heads, head_dim = keys.shape
    num_heads, num_splits = queries.shape[1], launch.num_splits
    splits = num_splits > 1
    partial = logarithms = seen
    if splits:
        shape = (launch.num_rows, num_heads, num_splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=seen.device)
        logarithms = torch.empty(shape, dtype=torch.float32, device=seen.device)
    dim = max(triton.next_power_of_2(head_dim), 16)
    wide = dim * keys.element_size() > 256
    _attend[(launch.num_sequences * launch.num_tiles, num_kv_heads, num_splits)](
        queries,
        keys,
        values,
        seen,
        partial,
        logarithms,
        inputs.tables,
        inputs.contexts,
        inputs.begins,
        head_dim**-0.5 * LOG2_E,
        launch.first_sequence,
        launch.first_row,
        launch.num_tiles,
        num_splits,
        inputs.tables.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        DIM=dim,
        BLOCK_SIZE=block_size,
        WINDOW=window or 0,
        ROWS=launch.tile_rows,
        KEYS=32 if wide else 64,
        PART=launch.part,
        SPLITS=splits,
        num_warps=8 if launch.tile_rows * dim > 64 * 128 else 4,
        num_stages=2,
    )
    if splits:
        rows = seen[launch.first_row : launch.first_row + launch.num_rows]
        combine(partial, logarithms, rows, in_order=launch.part > 0)
