"""Turns a scheduled batch into tensors, runs the model, and samples."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from itertools import takewhile

import torch
from torch import Tensor

from inference.kv_cache import KVCache
from inference.layers.attention import AttentionPlan, Chunk, chunk_mask
from inference.llama import Llama
from inference.sampler import sample
from inference.scheduler import Batch, SampledToken
from inference.sequence import Sequence


class ModelRunner:
    """The only part of the engine that touches tensors."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self._device = model.device

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[SampledToken]:
        """Computes the scheduled tokens; one sampled token for each of `batch.sampling`."""
        logits = self.logits(batch)
        return [] if logits is None else sample(logits, batch.sampling)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor | None:
        """Computes the scheduled tokens; logits for each of `batch.sampling`, None for none."""
        token_ids: list[int] = []
        positions: list[int] = []
        last_rows: list[int] = []
        for sequence in batch.sequences:
            begin = sequence.num_computed_tokens
            end = begin + sequence.num_scheduled_tokens
            token_ids += sequence.token_ids[begin:end]
            positions += range(begin, end)
            if sequence.samples_this_step:
                last_rows.append(len(token_ids) - 1)
        hidden = self._model.forward(
            self._tensor(token_ids), self._tensor(positions), self._cache, self._plan(batch)
        )
        if not last_rows:
            return None
        rows = hidden if len(last_rows) == len(hidden) else hidden[self._tensor(last_rows)]
        return self._model.logits(rows)

    @torch.inference_mode()
    def recover(self, blocks: Rows[int]) -> None:
        """Zeroes what a broken step may have stored in these blocks; raises if the device is lost.

        No live sequence may still read them.
        """
        size = self._cache.block_size
        slots = [slot for block in blocks for slot in range(block * size, (block + 1) * size)]
        index = self._tensor(slots)
        for number in range(self._model.config.num_layers):
            for stored in self._cache.layer(number):
                stored.index_fill_(0, index, 0)

    def _plan(self, batch: Batch) -> AttentionPlan:
        # Decodes come first; a prompt's last token further back goes as a chunk of one.
        decodes = list(takewhile(lambda s: s.num_uncomputed_tokens == 1, batch.sequences))
        num_decodes = len(decodes)
        slot_mapping: list[int] = []
        chunks: list[Chunk] = []
        for sequence in batch.sequences:
            begin = len(slot_mapping)
            if begin < num_decodes:
                slot_mapping.append(self._last_slot(sequence))
                continue
            end = sequence.num_computed_tokens + sequence.num_scheduled_tokens
            slots = self._slots(sequence, end)
            slot_mapping += slots[sequence.num_computed_tokens :]
            chunks.append(self._chunk(begin, len(slot_mapping), slots))
        decode_blocks, decode_mask = self._decode_tensors(decodes)
        return AttentionPlan(
            slot_mapping=self._tensor(slot_mapping),
            num_decodes=num_decodes,
            decode_blocks=decode_blocks,
            decode_mask=decode_mask,
            block_size=self._cache.block_size,
            chunks=tuple(chunks),
        )

    def _chunk(self, begin: int, end: int, slots: list[int]) -> Chunk:
        window = self._model.config.sliding_window
        mask = chunk_mask(end - begin, len(slots), window, self._device)
        return Chunk(begin=begin, end=end, slots=self._tensor(slots), mask=mask)

    def _decode_tensors(self, decodes: list[Sequence]) -> tuple[Tensor | None, Tensor | None]:
        """Block tables, padded to the longest, and the mask of what in them may be seen."""
        if not decodes:
            return None, None
        size = self._cache.block_size
        lengths = self._tensor([sequence.num_tokens for sequence in decodes]).unsqueeze(1)
        longest = max(sequence.num_tokens for sequence in decodes)
        num_blocks = -(-longest // size)
        tables = self._tensor(
            [
                [
                    *sequence.block_table[:num_blocks],
                    *([0] * (num_blocks - len(sequence.block_table))),
                ]
                for sequence in decodes
            ]
        )
        columns = torch.arange(num_blocks * size, device=self._device).unsqueeze(0)
        seen = columns < lengths
        window = self._model.config.sliding_window
        if window is not None:
            seen &= columns >= lengths - window
        mask = torch.zeros(seen.shape, dtype=self._cache.dtype, device=self._device)
        mask.masked_fill_(~seen, -math.inf)
        return tables, mask[:, None, None, :]

    def _last_slot(self, sequence: Sequence) -> int:
        """Where a decoding sequence's last token goes."""
        block, offset = divmod(sequence.num_tokens - 1, self._cache.block_size)
        return sequence.block_table[block] * self._cache.block_size + offset

    def _slots(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Where the first `num_tokens` of a sequence are."""
        size = self._cache.block_size
        slots: list[int] = []
        for block in sequence.block_table:
            slots += range(block * size, (block + 1) * size)
        return slots[:num_tokens]

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
