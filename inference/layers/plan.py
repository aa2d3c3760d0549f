"""Makes the attention plan of a step: block tables, slots and masks as tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.kv_cache import KVCache
from inference.layers.attention import AttentionPlan, Chunk, chunk_mask
from inference.step import Step


def make_plan(
    step: Step, cache: KVCache, window: int | None, device: torch.device
) -> AttentionPlan:
    """Leading sequences of one token go through the batched call, all others as chunks."""
    num_decodes = 0
    while num_decodes < step.num_sequences and step.begins[num_decodes + 1] == num_decodes + 1:
        num_decodes += 1
    slot_mapping = [_slot(step, cache, s, step.context(s) - 1) for s in range(num_decodes)]
    chunks: list[Chunk] = []
    for sequence in range(num_decodes, step.num_sequences):
        begin, end = step.begins[sequence], step.begins[sequence + 1]
        slots = _slots(step, cache, sequence)
        slot_mapping += slots[len(slots) - (end - begin) :]
        mask = chunk_mask(end - begin, len(slots), window, device)
        chunks.append(Chunk(begin=begin, end=end, slots=_tensor(slots, device), mask=mask))
    blocks, mask = _decode_tensors(step, num_decodes, cache, window, device)
    return AttentionPlan(
        slot_mapping=_tensor(slot_mapping, device),
        num_decodes=num_decodes,
        decode_blocks=blocks,
        decode_mask=mask,
        block_size=cache.block_size,
        chunks=tuple(chunks),
    )


def _decode_tensors(
    step: Step, num_decodes: int, cache: KVCache, window: int | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Block tables, padded to the longest, and the mask of what in them may be seen."""
    if not num_decodes:
        return None, None
    contexts = [step.context(sequence) for sequence in range(num_decodes)]
    num_blocks = -(-max(contexts) // cache.block_size)
    tables = [
        [*table[:num_blocks], *([0] * (num_blocks - len(table)))]
        for table in step.block_tables[:num_decodes]
    ]
    lengths = _tensor(contexts, device).unsqueeze(1)
    columns = torch.arange(num_blocks * cache.block_size, device=device).unsqueeze(0)
    seen = columns < lengths
    if window is not None:
        seen &= columns >= lengths - window
    mask = torch.zeros(seen.shape, dtype=cache.dtype, device=device)
    mask.masked_fill_(~seen, -math.inf)
    return _tensor(tables, device), mask[:, None, None, :]


def _slot(step: Step, cache: KVCache, sequence: int, position: int) -> int:
    block, offset = divmod(position, cache.block_size)
    return step.block_tables[sequence][block] * cache.block_size + offset


def _slots(step: Step, cache: KVCache, sequence: int) -> list[int]:
    """Where a sequence's tokens are, up to the end of its rows here."""
    size = cache.block_size
    slots: list[int] = []
    for block in step.block_tables[sequence]:
        slots += range(block * size, (block + 1) * size)
    return slots[: step.context(sequence)]


def _tensor(values: object, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
