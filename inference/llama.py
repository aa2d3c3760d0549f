"""The Llama family's decoder, for inference only: Llama, Mistral, Qwen2, Qwen3, SmolLM.

A step's tokens, of whatever sequences, are one flat batch [num_tokens, hidden_size]; who belongs
to whom is the attention plan's to know. Weights that are multiplied with the same input are
merged (q, k, v; gate, up).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.kv_cache import KVCache
from inference.layers.attention import AttentionPlan, attend
from inference.layers.linear import Int8Linear, Linear
from inference.layers.plan import make_plan
from inference.layers.rotary import RotaryEmbedding, rotate
from inference.model_config import ModelConfig
from inference.step import Step
from inference.weights import Weights


class Layer:
    """One decoder layer: attention, then a gated feed-forward, each on a normed residual."""

    def __init__(self, config: ModelConfig, reader: Reader, number: int) -> None:
        hidden, head_dim = config.hidden_size, config.head_dim
        self._config = config
        self._number = number
        q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
        self._sizes = [q_size, kv_size, kv_size]
        self.rotates = number not in config.no_rope_layers
        prefix = f"model.layers.{number}"
        self.input_norm = reader.tensor(f"{prefix}.input_layernorm.weight", hidden)
        self.post_norm = reader.tensor(f"{prefix}.post_attention_layernorm.weight", hidden)
        attention = f"{prefix}.self_attn"
        self.qkv = reader.merged(
            [
                (f"{attention}.{name}_proj", size)
                for name, size in zip("qkv", self._sizes, strict=True)
            ],
            hidden,
            bias=config.attention_bias,
        )
        self.out = reader.merged([(f"{attention}.o_proj", hidden)], q_size, bias=config.output_bias)
        self.qk_norms: tuple[Tensor, Tensor] | None = None
        if config.qk_norm:
            self.qk_norms = (
                reader.tensor(f"{attention}.q_norm.weight", head_dim),
                reader.tensor(f"{attention}.k_norm.weight", head_dim),
            )
        inner = config.intermediate_size
        mlp = f"{prefix}.mlp"
        self.gate_up = reader.merged(
            [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)], hidden, bias=config.mlp_bias
        )
        self.down = reader.merged([(f"{mlp}.down_proj", hidden)], inner, bias=config.mlp_bias)

    def __call__(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, plan: AttentionPlan
    ) -> Tensor:
        x = x + self._attend(self._norm(x, self.input_norm), rotation, cache, plan)
        gate, up = self.gate_up(self._norm(x, self.post_norm)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _attend(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: KVCache, plan: AttentionPlan
    ) -> Tensor:
        q, k, v = (
            part.view(len(x), -1, self._config.head_dim)
            for part in torch.split(self.qkv(x), self._sizes, dim=-1)
        )
        if self.qk_norms is not None:
            q, k = self._norm(q, self.qk_norms[0]), self._norm(k, self.qk_norms[1])
        if self.rotates:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        return self.out(attend(q, k, v, cache.layer(self._number), plan))

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self._config.rms_norm_eps)


class Llama:
    """The decoder of a checkpoint, on a device."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
    ) -> None:
        """Reads all weights. Raises ModelLoadError if any is missing or has another shape.

        With `int8` the layers' matrices are stored so, and multiplied in `dtype`.
        """
        reader = Reader(weights, dtype, device, int8=int8)
        self.config = config
        self.dtype = dtype
        self.device = device
        self._embeddings, self._head = reader.embeddings_and_head(config)
        self._layers = [Layer(config, reader, number) for number in range(config.num_layers)]
        self._norm = reader.tensor("model.norm.weight", config.hidden_size)
        self._rotary = RotaryEmbedding(config, max_context, device)
        self.num_parameters = reader.num_parameters

    def compute(self, step: Step, cache: KVCache) -> Tensor | None:
        """Logits [len(step.outputs), vocab_size] in float32; None where none are wanted."""
        x = self._forward(step, cache)
        if not step.outputs:
            return None
        if len(step.outputs) != len(step.token_ids):
            x = x[torch.tensor(step.outputs, device=self.device)]
        x = rms_norm(x, self._norm, self.config.rms_norm_eps)
        return F.linear(x, self._head).float()

    def hidden(self, step: Step, cache: KVCache) -> Tensor:
        """Last hidden states [num_tokens, hidden_size] of all rows."""
        return rms_norm(self._forward(step, cache), self._norm, self.config.rms_norm_eps)

    def _forward(self, step: Step, cache: KVCache) -> Tensor:
        """What the last layer gives, not yet normed, [num_tokens, hidden_size]."""
        token_ids = torch.tensor(step.token_ids, device=self.device)
        positions = torch.tensor(step.positions, device=self.device)
        plan = make_plan(step, cache, self.config.sliding_window, self.device)
        x = F.embedding(token_ids, self._embeddings)
        rotation = self._rotary.at(positions, self.dtype)
        for layer in self._layers:
            x = layer(x, rotation, cache, plan)
        return x


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root mean square norm over the last dimension, computed in float32 (arXiv:1910.07467)."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


class Reader:
    """Takes tensors out of a checkpoint in the wanted type, and counts them."""

    def __init__(
        self, weights: Weights, dtype: torch.dtype, device: torch.device, *, int8: bool = False
    ) -> None:
        self._int8 = int8
        self._weights = weights
        self._dtype = dtype
        self._device = device
        self.num_parameters = 0

    def tensor(self, name: str, *shape: int) -> Tensor:
        """One tensor."""
        tensor = self._weights.take(name, shape)
        self.num_parameters += tensor.numel()
        return tensor.to(device=self._device, dtype=self._dtype)

    def embeddings_and_head(self, config: ModelConfig) -> tuple[Tensor, Tensor]:
        """Input and output embeddings, each [vocab_size, hidden_size]; one tensor where tied."""
        shape = (config.vocab_size, config.hidden_size)
        embeddings = self.tensor("model.embed_tokens.weight", *shape)
        if config.tie_word_embeddings:
            return embeddings, embeddings
        return embeddings, self.tensor("lm_head.weight", *shape)

    def merged(self, parts: list[tuple[str, int]], num_inputs: int, *, bias: bool) -> Linear:
        """Matrices with the same input as one; each part is a name and its number of outputs."""
        matrices = [self.tensor(f"{name}.weight", size, num_inputs) for name, size in parts]
        biases = [self.tensor(f"{name}.bias", size) for name, size in parts] if bias else []
        bias_vector = torch.cat(biases) if biases else None
        if self._int8:
            return Int8Linear(torch.cat(matrices), bias_vector)
        return Linear(torch.cat(matrices), bias_vector)
