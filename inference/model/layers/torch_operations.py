"""The `Operations` protocol with torch's operations, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model.config import ModelConfig
from inference.model.layers.activations import ACTIVATIONS
from inference.model.layers.attention import Scores, attend
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
        self.local_rotary = rotary
        if config.local_rope_theta is not None:
            max_position, device = len(rotary.tables[0]), rotary.tables[0].device
            self.local_rotary = RotaryEmbedding(config, max_position, device, is_local=True)
        self._eps = config.norm_eps
        self._gate = ACTIVATIONS[config.activation]

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        # Weights with an offset are in float32, and the product with them, too.
        return ((wide * scale).to(weight.dtype) * weight).to(x.dtype)

    def add_norm(self, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = residual + x
        return self.norm(total, weight), total

    def gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self._gate(gate, up)

    def quantise(self, x: Tensor) -> Quantised:
        return quantise_rows(x)

    def attention(self, inputs: StepInputs, cache: KVCache) -> Attention:
        return TorchAttention(self, inputs, cache)


class TorchAttention:
    """Implements `Attention`."""

    def __init__(self, operations: TorchOperations, inputs: StepInputs, cache: KVCache) -> None:
        config = operations.config
        self._config = config
        self._norm = operations.norm
        self._cache = cache
        windows = {config.window(layer) for layer in range(config.num_layers)}
        self._plans = {window: make_plan(inputs, cache, window) for window in windows}
        positions = inputs.positions.long()
        self._rotation = operations.rotary.at(positions, cache.dtype)
        self._local_rotation = self._rotation
        if operations.local_rotary is not operations.rotary:
            self._local_rotation = operations.local_rotary.at(positions, cache.dtype)
        self._num_heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._head_dim = config.head_dim

    def __call__(
        self,
        qkv: Tensor,
        layer: int,
        norms: tuple[Tensor, Tensor] | None,
        *,
        rotates: bool,
        sinks: Tensor | None = None,
    ) -> Tensor:
        heads = qkv.view(len(qkv), -1, self._head_dim)
        q, k, v = torch.split(heads, self._num_heads, dim=1)
        if norms is not None:
            q, k = self._norm_heads(q, norms[0]), self._norm_heads(k, norms[1])
        window = self._config.window(layer)
        if rotates:
            rotation = self._rotation if window is None else self._local_rotation
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        plan = self._plans[window]
        scores = Scores(self._config.attention_softcap, sinks)
        return attend(q, k, v, self._cache.layer(layer), plan, scores)

    def _norm_heads(self, heads: Tensor, weight: Tensor) -> Tensor:
        """Of each head, or of all heads together if there is a weight for each of their values."""
        if len(weight) == self._head_dim:
            return self._norm(heads, weight)
        return self._norm(heads.flatten(1), weight).view(heads.shape)
