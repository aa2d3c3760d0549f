"""Paged attention in one pass over the blocks of each sequence (arXiv:2205.14135, 2309.06180).

The same kernel computes prefill chunks and decode tokens. A program takes a tile of queries of one
sequence with all query heads that share a KV head, so it reads keys and values once per group. If
there are too few programs, the keys are split over several (FlashDecoding), and `combine` adds
their partial results. The kernel reads all lengths on the device, so CUDA graphs can capture it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference.model.kernels.attention.combine import add_part, combine, empty_softmax, normalise
from inference.runner.step_inputs import StepInputs

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Sequences that one kernel launch computes, and how it splits queries and keys."""

    first_sequence: int
    num_sequences: int
    first_row: int
    num_rows: int
    num_tiles: int
    """Query tiles of the sequence with the most queries."""
    tile_rows: int
    """Queries times query heads of a group: a power of two, at least 16."""
    num_splits: int
    part: int = 0
    """Keys per part, counted from the context's start; 0 splits the visible keys evenly.

    With a fixed length a query's result does not depend on the batch (batch invariance)."""


@triton.jit
def _attend_keys(
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
    """Attention over keys [low, high): output [ROWS, DIM], logarithm of the weights' sum."""
    dims = tl.arange(0, DIM)
    is_dim = dims < HEAD_DIM
    peak, total, sums = empty_softmax(ROWS, DIM)
    for start in range(low, high, KEYS):
        key = start + tl.arange(0, KEYS)
        is_key = key < high
        block = tl.load(table + key // BLOCK_SIZE, mask=is_key, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE
        stored = (slot * NUM_KV_HEADS + kv_head) * HEAD_DIM
        mask = is_key[None, :] & is_dim[:, None]
        k = tl.load(keys + stored[None, :] + dims[:, None], mask=mask, other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        is_visible = is_key[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            is_visible = is_visible & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(is_visible, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, axis=1))
        # A row without visible keys would compute infinity minus infinity.
        base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(peak - base)
        mask = is_key[:, None] & is_dim[None, :]
        v = tl.load(values + stored[:, None] + dims[None, :], mask=mask, other=0.0)
        sums = sums * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * decay + tl.sum(weights, axis=1)
        peak = new_peak
    # Padding rows, and parts without keys, have no visible keys.
    total = tl.where(total > 0.0, total, 1.0)
    return sums / total[:, None], peak + tl.log2(total)


@triton.jit
def _attend_parts(
    q: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    table: tl.tensor,
    position: tl.tensor,
    lowest: int,
    highest: int,
    kv_head: int,
    scale: float,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
) -> tl.tensor:
    """Attention over keys [lowest, highest) part by part, exactly as `combine` adds the parts."""
    peak, total, sums = empty_softmax(ROWS, DIM)
    for first in range(lowest // PART * PART, highest, PART):
        result, logarithm = _attend_keys(
            q, keys, values, table, position, tl.maximum(first, lowest),
            tl.minimum(first + PART, highest), kv_head, scale,
            NUM_KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, WINDOW, ROWS, KEYS,
        )  # fmt: skip
        peak, total, sums = add_part(peak, total, sums, logarithm, result)
    return normalise(total, sums)


@triton.jit
def _key_range(
    first_query: int,
    last_query: int,
    split: int,
    num_splits: int,
    WINDOW: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
) -> tl.tensor:
    """Keys [lowest, highest) are visible to a tile of queries; a split computes [low, high).

    `first_query` is the position of the tile's first query, `last_query` the one after its last.
    """
    highest = last_query
    lowest = 0
    if WINDOW > 0:
        lowest = tl.maximum(first_query - WINDOW + 1, 0) // KEYS * KEYS
    if PART > 0:
        low = tl.maximum(split * PART, lowest)
        high = tl.minimum(split * PART + PART, highest)
    else:
        share = tl.cdiv(tl.cdiv(highest - lowest, num_splits), KEYS) * KEYS
        low = lowest + split * share
        high = tl.minimum(low + share, highest)
    return lowest, highest, low, high


@triton.jit(
    # Do not compile another kernel if a number is a multiple of 16, or a tensor's address
    # is aligned to 16 bytes.
    do_not_specialize=["first_sequence", "first_row", "num_tiles", "num_splits", "table_stride"],
    do_not_specialize_on_alignment=["tables", "contexts", "begins"],
)
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    output: tl.tensor,
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
    # The last tile starts first: it has the most keys, so it would otherwise finish last.
    tile = num_tiles - 1 - tl.program_id(0) % num_tiles
    begin = tl.load(begins + sequence) + tile * QUERIES
    if begin >= end:
        return
    context = tl.load(contexts + sequence)
    offset = context - end  # a row's position minus its row number
    table = tables + sequence.to(tl.int64) * table_stride

    rows = tl.arange(0, ROWS)
    query = begin + rows // GROUP
    position = query + offset
    head = kv_head * GROUP + rows % GROUP
    is_query = (rows < QUERIES * GROUP) & (query < end)
    dims = tl.arange(0, DIM)
    offsets = (query.to(tl.int64) * NUM_HEADS + head) * HEAD_DIM
    inside = is_query[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(queries + offsets[:, None] + dims[None, :], mask=inside, other=0.0)

    lowest, highest, low, high = _key_range(
        begin + offset, tl.minimum(begin + QUERIES, end) + offset, split, num_splits,
        WINDOW, KEYS, PART,
    )  # fmt: skip
    if PART > 0 and not SPLITS:
        result = _attend_parts(
            q, keys, values, table, position, lowest, highest, kv_head, scale,
            NUM_KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, WINDOW, ROWS, KEYS, PART,
        )  # fmt: skip
    else:
        result, logarithm = _attend_keys(
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
            output + offsets[:, None] + dims[None, :],
            result.to(output.dtype.element_ty),
            mask=inside,
        )


def attend(
    queries: Tensor,
    cache: tuple[Tensor, Tensor],
    output: Tensor,
    inputs: StepInputs,
    launch: Launch,
    *,
    block_size: int,
    window: int | None,
) -> None:
    """Writes the launch's rows of `output` [num_tokens, num_heads, head_dim], as `queries` is.

    `cache` is a layer's keys and values, [num_slots, num_kv_heads, head_dim], this step's included.
    """
    keys, values = cache
    _, num_kv_heads, head_dim = keys.shape
    num_heads, num_splits = queries.shape[1], launch.num_splits
    partial = logarithms = output
    if num_splits > 1:
        shape = (launch.num_rows, num_heads, num_splits)
        partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=output.device)
        logarithms = torch.empty(shape, dtype=torch.float32, device=output.device)
    dim = max(triton.next_power_of_2(head_dim), 16)
    _attend[(launch.num_sequences * launch.num_tiles, num_kv_heads, num_splits)](
        queries, keys, values, output, partial, logarithms,
        inputs.tables, inputs.contexts, inputs.begins,
        head_dim**-0.5 * LOG2_E,
        launch.first_sequence, launch.first_row, launch.num_tiles, num_splits,
        inputs.tables.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, DIM=dim,
        BLOCK_SIZE=block_size, WINDOW=window or 0,
        ROWS=launch.tile_rows, KEYS=32 if dim * keys.element_size() > 256 else 64,
        PART=launch.part, SPLITS=num_splits > 1,
        num_warps=8 if launch.tile_rows * dim > 64 * 128 else 4, num_stages=2,
    )  # fmt: skip
    if num_splits > 1:
        rows = output[launch.first_row : launch.first_row + launch.num_rows]
        combine(partial, logarithms, rows, in_order=launch.part > 0)
