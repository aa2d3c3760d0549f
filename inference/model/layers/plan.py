"""Builds the attention plan of a step from its block tables, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.layers.attention import AttentionPlan, PrefillChunk, chunk_mask
from inference.runner.step_inputs import RowRange, StepInputs


def make_plan(inputs: StepInputs, cache: KVCache, window: int | None) -> AttentionPlan:
    """The leading sequences of one token use the batched call; the others are prefill chunks."""
    blocks, mask = _decode_tensors(inputs, cache, window)
    return AttentionPlan(
        slot_mapping=inputs.slots.long(),
        num_decodes=inputs.num_decodes,
        decode_blocks=blocks,
        decode_mask=mask,
        block_size=cache.block_size,
        chunks=tuple(_chunk(rows, inputs, cache.block_size, window) for rows in inputs.row_ranges),
    )


def _chunk(rows: RowRange, inputs: StepInputs, block_size: int, window: int | None) -> PrefillChunk:
    device = inputs.tables.device
    num_blocks = -(-rows.context // block_size)
    firsts = inputs.tables[rows.sequence, :num_blocks].long().unsqueeze(1) * block_size
    slots = firsts + torch.arange(block_size, device=device)
    mask = chunk_mask(rows.end - rows.begin, rows.context, window, device)
    return PrefillChunk(
        begin=rows.begin, end=rows.end, slots=slots.flatten()[: rows.context], mask=mask
    )


def _decode_tensors(
    inputs: StepInputs, cache: KVCache, window: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """Block tables, padded to the longest, and the mask of the visible slots."""
    if not inputs.num_decodes:
        return None, None
    lengths = inputs.contexts[: inputs.num_decodes].unsqueeze(1)
    columns = torch.arange(inputs.num_blocks * cache.block_size, device=lengths.device).unsqueeze(0)
    visible = columns < lengths
    if window is not None:
        visible &= columns >= lengths - window
    mask = torch.zeros(visible.shape, dtype=cache.dtype, device=lengths.device)
    mask.masked_fill_(~visible, -math.inf)
    tables = inputs.tables[: inputs.num_decodes, : inputs.num_blocks]
    return tables, mask[:, None, None, :]
