"""A decode step's tensors at addresses that stay, for graphs that were captured with them."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from inference.kv_cache import KVCache
from inference.staging import to_device
from inference.step import Step
from inference.step_inputs import StepInputs, padded_tables, slots_of

_TOKEN_IDS, _POSITIONS, _SLOTS, _CONTEXTS = range(4)


class DecodeBuffers:
    """Room for the inputs of up to `max_num_seqs` sequences, one token each.

    What a step leaves free is filled up with sequences of one token, which is written to the
    cache's scrap block and read from there: finite numbers that nobody asks for.
    """

    def __init__(
        self, cache: KVCache, *, max_num_seqs: int, max_context: int, device: torch.device
    ) -> None:
        self.cache = cache
        self._device = device
        num_blocks = -(-max_context // cache.block_size)
        self._fields = torch.zeros((4, max_num_seqs), dtype=torch.int32, device=device)
        self._tables = torch.zeros((max_num_seqs, num_blocks), dtype=torch.int32, device=device)
        self._begins = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device)
        self._fields[_SLOTS] = cache.scrap_block * cache.block_size
        self._fields[_CONTEXTS] = 1
        self._tables[:, 0] = cache.scrap_block

    def inputs(self, size: int) -> StepInputs:
        """The tensors of a batch of `size` sequences: views, which `fill` writes to."""
        return StepInputs(
            token_ids=self._fields[_TOKEN_IDS, :size],
            positions=self._fields[_POSITIONS, :size],
            slots=self._fields[_SLOTS, :size],
            begins=self._begins[: size + 1],
            contexts=self._fields[_CONTEXTS, :size],
            outputs=self._begins[:size],
            tables=self._tables[:size],
            num_decodes=size,
            num_blocks=self._tables.shape[1],
            pieces=(),
        )

    def fill(self, step: Step, size: int) -> None:
        """Puts a step of at most `size` tokens, one a sequence, where `inputs(size)` looks.

        One copy from the host, which nobody waits for, and two on the device.
        """
        block_size, scrap = self.cache.block_size, self.cache.scrap_block
        num_sequences = step.num_sequences
        positions = np.array(step.positions, dtype=np.int32)
        width = int(positions.max(initial=0)) // block_size + 1
        tables = np.full((size, width), scrap, dtype=np.int32)
        tables[:num_sequences] = padded_tables(step, width)
        blocks = tables[np.arange(num_sequences), positions // block_size]
        fields = np.zeros((4, size), dtype=np.int32)
        fields[_SLOTS] = scrap * block_size
        fields[_CONTEXTS] = 1
        fields[_TOKEN_IDS, :num_sequences] = step.token_ids
        fields[_POSITIONS, :num_sequences] = positions
        fields[_SLOTS, :num_sequences] = slots_of(blocks, positions, block_size)
        fields[_CONTEXTS, :num_sequences] = positions + 1
        packed = to_device(np.concatenate([fields.ravel(), tables.ravel()]), self._device)
        self._fields[:, :size].copy_(packed[: fields.size].view(fields.shape))
        self._tables[:size, :width].copy_(packed[fields.size :].view(tables.shape))


def batch_sizes(max_num_seqs: int) -> list[int]:
    """The sizes that are captured, ascending: powers of two, then every eighth, then the most."""
    small_and_eighths = chain((1, 2, 4), range(8, max_num_seqs, 8))
    return [*(size for size in small_and_eighths if size < max_num_seqs), max_num_seqs]
