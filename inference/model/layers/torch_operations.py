"""The `Operations` protocol with torch's operations, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.attention import attend
from inference.model.layers.operations import Attention, Operations
from inference.model.layers.plan import make_plan
from inference.model.layers.quantise import Quantised, quantise_rows
from inference.model.layers.rotary import RotaryEmbedding, rotate
from inference.runner.step_inputs import StepInputs


class TorchOperations(Operations):
    """Runs each operation as separate torch calls, without fusion."""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding) -> None:
        self.config = config
        self.rotary = rotary

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return (wide * scale).to(x.dtype) * weight

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x
        return self.norm(total, weight), total

    def gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def quantise(self, x: Tensor) -> Quantised:
        return quantise_rows(x)

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        return TorchAttention(self, inputs, cache)


class TorchAttention:
    """Implements `Attention`."""

    def __init__(self, operations: TorchOperations, inputs: StepInputs, cache: KVCache) -> None:
        config = operations.config
        self._norm = operations.norm
        self._cache = cache
        self._plan = make_plan(inputs, cache, config.sliding_window)
        self._rotation = operations.rotary.at(inputs.positions.long(), cache.dtype)
        self._num_heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._head_dim = config.head_dim

    def __call__(
        self, qkv: Tensor, layer: int, norms: tuple[Tensor, Tensor] | None, *, rotates: bool
    ) -> Tensor:
        heads = qkv.view(len(qkv), -1, self._head_dim)
        q, k, v = torch.split(heads, self._num_heads, dim=1)
        if norms is not None:
            q, k = self._norm(q, norms[0]), self._norm(k, norms[1])
        if rotates:
            q, k = rotate(q, *self._rotation), rotate(k, *self._rotation)
        return attend(q, k, v, self._cache.layer(layer), self._plan)
