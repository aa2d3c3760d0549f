"""The tensors that hold the blocks of the paged KV cache."""

from __future__ import annotations

from collections import abc

import torch
from torch import Tensor

from inference.model.config import ModelConfig


class KVCache:
    """Keys and values of all layers. A token's slot is block * block_size + offset.

    After the blocks of sequences there is one more, `scrap_block`: padding rows write to it.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        num_slots = (num_blocks + 1) * block_size
        shape = (config.num_layers, num_slots, config.num_kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def scrap_block(self) -> int:
        return self.num_blocks

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [num_slots, num_kv_heads, head_dim], as views."""
        return self._keys[number], self._values[number]

    def zero(self, blocks: abc.Sequence[int]) -> None:
        """Zeroes blocks in all layers: after a failed step they may contain NaN."""
        index = torch.tensor(list(blocks), dtype=torch.int64, device=self._keys.device)
        for stored in (self._keys, self._values):
            # A block is contiguous in every layer, whatever its internal layout is.
            stored.view(len(stored), self.num_blocks + 1, -1).index_fill_(1, index, 0)

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
