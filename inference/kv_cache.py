"""The tensors behind the block manager's ids."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.model_config import ModelConfig


class KVCache:
    """Keys and values of all layers. A slot is a token's place: block * block_size + offset."""

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
        shape = (config.num_layers, num_blocks * block_size, config.num_kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [num_slots, num_kv_heads, head_dim], as views."""
        return self._keys[number], self._values[number]

    def clear(self) -> None:
        """Forgets all: after a step that broke, what is stored may be no numbers."""
        self._keys.zero_()
        self._values.zero_()

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Memory that one token takes, over all layers."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
