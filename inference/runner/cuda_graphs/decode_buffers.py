"""Buffers at fixed addresses for a step's tensors, as CUDA graphs require.

Each row of a step is a separate sequence here: a token, its context length and its block table. So
a sequence with draft tokens, which has several rows, has the shape of a decode too.
"""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from inference.kv_cache.kv_cache import KVCache
from inference.runner.staging import to_device
from inference.runner.step import Step
from inference.runner.step_inputs import StepInputs, padded_tables, slots_of

_TOKEN_IDS, _POSITIONS, _SLOTS, _CONTEXTS = range(4)


class DecodeBuffers:
    """Buffers for the inputs of up to `max_num_rows` rows.

    Unused rows have a context of one token in the cache's scrap block: they compute finite numbers,
    and their results are discarded.
    """

    def __init__(
        self, cache: KVCache, *, max_num_rows: int, max_context: int, device: torch.device
    ) -> None:
        self._block_size, self._scrap = cache.block_size, cache.scrap_block
        self._device = device
        num_blocks = -(-max_context // cache.block_size)
        self._fields = torch.zeros((4, max_num_rows), dtype=torch.int32, device=device)
        self._tables = torch.zeros((max_num_rows, num_blocks), dtype=torch.int32, device=device)
        self._begins = torch.arange(max_num_rows + 1, dtype=torch.int32, device=device)
        self._fields[_SLOTS] = self._scrap * self._block_size
        self._fields[_CONTEXTS] = 1
        self._tables[:, 0] = self._scrap

    def inputs(self, size: int) -> StepInputs:
        """The tensors of a step of `size` rows: views of the buffers that `fill` writes."""
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
            row_ranges=(),
        )

    def fill(self, step: Step, size: int) -> None:
        """Copy a step of at most `size` rows into the buffers of `inputs(size)`.

        One asynchronous copy from the host, and two on the device.
        """
        num_rows = len(step.token_ids)
        positions = np.array(step.positions, dtype=np.int32)
        width = int(positions.max()) // self._block_size + 1
        sequences = np.repeat(np.arange(step.num_sequences), np.diff(step.begins))
        tables = np.full((size, width), self._scrap, dtype=np.int32)
        tables[:num_rows] = padded_tables(step, width)[sequences]
        blocks = tables[np.arange(num_rows), positions // self._block_size]
        fields = np.zeros((4, size), dtype=np.int32)
        fields[_SLOTS] = self._scrap * self._block_size
        fields[_CONTEXTS] = 1
        fields[_TOKEN_IDS, :num_rows] = step.token_ids
        fields[_POSITIONS, :num_rows] = positions
        fields[_SLOTS, :num_rows] = slots_of(blocks, positions, self._block_size)
        fields[_CONTEXTS, :num_rows] = positions + 1
        packed = to_device(np.concatenate([fields.ravel(), tables.ravel()]), self._device)
        self._fields[:, :size].copy_(packed[: fields.size].view(fields.shape))
        self._tables[:size, :width].copy_(packed[fields.size :].view(tables.shape))
        if step.device_token_ids is not None:
            self._fields[_TOKEN_IDS, :num_rows].copy_(step.device_token_ids)


def batch_sizes(most: int) -> list[int]:
    """The numbers of rows that are captured, ascending, with growing distances up to `most`."""
    steps = (range(8, 64, 8), range(64, 256, 16), range(256, most, 32))
    return [*(size for size in chain((1, 2, 4), *steps) if size < most), most]
