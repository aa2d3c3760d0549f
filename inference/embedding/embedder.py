"""Turns token ids into vectors: the mean of the last hidden states.

Does not use the engine's KV cache. The inputs of a batch are concatenated without padding, as a
step's sequences are. Keys and values are stored for one layer at a time, in a scratch buffer that
all layers share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.factory import Model
from inference.runner.step import pack

BLOCK_SIZE = 16


class Scratch(KVCache):
    """A KV cache for one layer at a time."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(replace(config, num_layers=1), num_blocks, BLOCK_SIZE, dtype, device)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """The same buffer for every layer."""
        return super().layer(0)


class MeanPoolingEmbedder:
    """Embeds with the served model, whose weights it shares. For one thread at a time."""

    def __init__(self, model: Model, max_num_batched_tokens: int) -> None:
        """A forward pass takes up to `max_num_batched_tokens` of whole inputs, or one input."""
        self._model = model
        self._max_num_batched_tokens = max_num_batched_tokens

    @torch.inference_mode()
    def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a vector [hidden_size] of length 1 for each input, none empty. Blocks."""
        return [vector for batch in self._batches(inputs) for vector in self._embed(batch)]

    def _batches(self, inputs: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        batch: list[Sequence[int]] = []
        num_tokens = 0
        for token_ids in inputs:
            num_tokens += len(token_ids)
            if batch and num_tokens > self._max_num_batched_tokens:
                yield batch
                batch, num_tokens = [], len(token_ids)
            batch.append(token_ids)
        if batch:
            yield batch

    def _embed(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        model = self._model
        step = pack([(0, each) for each in batch], BLOCK_SIZE, outputs=False)
        num_blocks = step.block_tables[-1][-1] + 1
        scratch = Scratch(model.config, num_blocks, model.dtype, model.device)
        # Means in float32: a sum of thousands of bfloat16 values is too inexact.
        hidden = model.hidden(step, scratch).float()
        means = [rows.mean(0) for rows in torch.split(hidden, [len(each) for each in batch])]
        vectors: list[list[float]] = F.normalize(torch.stack(means), dim=-1).tolist()
        return vectors
