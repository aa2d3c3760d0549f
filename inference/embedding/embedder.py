"""Computes pieces of inputs to embed: sums of last hidden states, in the engine's KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inference.embedding.queue import Chunk
from inference.kv_cache.kv_cache import KVCache
from inference.model.factory import Model
from inference.runner.step import Step


class HiddenStateEmbedder:
    """Implements `InputEmbedder` with the served model and its KV cache."""

    def __init__(self, model: Model, cache: KVCache) -> None:
        self._model = model
        self._cache = cache

    @torch.inference_mode()
    def compute(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float64]]:
        """The sum of the last hidden states [hidden_size] of each chunk. Waits for the device."""
        # Kernels expect the sequences of one token first; the sort is stable.
        order = sorted(range(len(chunks)), key=lambda index: len(chunks[index].token_ids) > 1)
        in_order = [chunks[index] for index in order]
        hidden = self._model.hidden(self._step(in_order), self._cache)
        lengths = [len(chunk.token_ids) for chunk in in_order]
        # In float64: a sum of thousands of bfloat16 values is too inexact.
        sums = [rows.sum(0, dtype=torch.float64) for rows in torch.split(hidden, lengths)]
        found: list[NDArray[np.float64]] = list(torch.stack(sums).cpu().numpy())
        return [
            each for _, each in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])
        ]

    @torch.inference_mode()
    def recover(self, blocks: Sequence[int]) -> None:
        """Zero blocks, which may have NaN after a failure; raises if the device is lost."""
        self._cache.zero(blocks)

    def _step(self, chunks: Sequence[Chunk]) -> Step:
        token_ids: list[int] = []
        positions: list[int] = []
        begins = [0]
        tables: list[Sequence[int]] = []
        for chunk in chunks:
            end = chunk.begin + len(chunk.token_ids)
            token_ids += chunk.token_ids
            positions += range(chunk.begin, end)
            begins.append(len(token_ids))
            tables.append(chunk.blocks[: -(-end // self._cache.block_size)])
        return Step(
            token_ids=token_ids, positions=positions, begins=begins, block_tables=tables, outputs=[]
        )
