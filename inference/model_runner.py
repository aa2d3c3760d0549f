"""Turns a scheduled batch into tensors, runs the model, and samples."""

from __future__ import annotations

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
            end = sequence.num_computed_tokens + sequence.num_scheduled_tokens
            slots = self._slots(sequence, end)
            begin = len(slot_mapping)
            slot_mapping += slots[sequence.num_computed_tokens :]
            if begin >= num_decodes:
                chunks.append(self._chunk(begin, len(slot_mapping), slots))
        decode_slots, decode_mask = self._decode_tensors(decodes)
        return AttentionPlan(
            slot_mapping=self._tensor(slot_mapping),
            num_decodes=num_decodes,
            decode_slots=decode_slots,
            decode_mask=decode_mask,
            chunks=tuple(chunks),
        )

    def _chunk(self, begin: int, end: int, slots: list[int]) -> Chunk:
        window = self._model.config.sliding_window
        mask = chunk_mask(end - begin, len(slots), window, self._device)
        return Chunk(begin=begin, end=end, slots=self._tensor(slots), mask=mask)

    def _decode_tensors(self, decodes: list[Sequence]) -> tuple[Tensor | None, Tensor | None]:
        """Slots [num_decodes, longest] from the block tables, and what of them may be seen."""
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
        offsets = torch.arange(size, device=self._device)
        slots = (tables.unsqueeze(2) * size + offsets).flatten(1)[:, :longest]
        columns = torch.arange(longest, device=self._device).unsqueeze(0)
        seen = columns < lengths
        window = self._model.config.sliding_window
        if window is not None:
            seen &= columns >= lengths - window
        return slots, seen[:, None, None, :]

    def _slots(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Where the first `num_tokens` of a sequence are."""
        size = self._cache.block_size
        slots: list[int] = []
        for block in sequence.block_table:
            slots += range(block * size, (block + 1) * size)
        return slots[:num_tokens]

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
