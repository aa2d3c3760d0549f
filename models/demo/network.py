"""The demo model's network, with Llama's architecture.

The weights are exported with the names and shapes of `transformers.LlamaForCausalLM`; a test
compares the logits of both. `trainer.py` adds readouts on inner layers during training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The sizes of the network, named as config.json names them."""

    vocab_size: int = 4352
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 100_000.0


class Block(nn.Module):
    """One decoder layer: attention, then a gated feed-forward, each on a normed residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.head_dim, self.eps = (
            shape.num_attention_heads,
            shape.head_dim,
            shape.rms_norm_eps,
        )
        width = shape.num_attention_heads * shape.head_dim
        self.input_norm = nn.Parameter(torch.ones(shape.hidden_size))
        self.post_norm = nn.Parameter(torch.ones(shape.hidden_size))
        # Merged, because one large product is faster than three small ones.
        self.qkv = nn.Linear(shape.hidden_size, 3 * width, bias=False)
        self.out = nn.Linear(width, shape.hidden_size, bias=False)
        self.gate_up = nn.Linear(shape.hidden_size, 2 * shape.intermediate_size, bias=False)
        self.down = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """`x` is [batch, length, hidden]; attention is causal."""
        batch, length, hidden = x.shape
        qkv = self.qkv(F.rms_norm(x, (hidden,), self.input_norm, self.eps))
        q, k, v = qkv.view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin
        mixed = F.scaled_dot_product_attention(q, k, v.contiguous(), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(F.rms_norm(x, (hidden,), self.post_norm, self.eps)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _rotate_half(x: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


class Network(nn.Module):
    """The decoder; the embedding matrix is also the output matrix."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = shape or Shape()
        self.embed = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden_size))
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                scale = (2 * shape.num_hidden_layers) ** -0.5 if deep else 1.0
                nn.init.normal_(weight, std=(0.04 if "embed" in name else 0.06) * scale)
        steps = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(
            torch.arange(shape.max_position_embeddings), 1.0 / shape.rope_theta**steps
        )
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def hidden(self, ids: Tensor) -> list[Tensor]:
        """The residual stream after every block, the last one normed: each [batch, length, hidden].

        Padding is on the right, where causal attention ignores it.
        """
        # In the activations' type, because attention needs one type for q, k and v.
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        cos, sin = self.cos[: ids.shape[1]].to(dtype), self.sin[: ids.shape[1]].to(dtype)
        x, states = self.embed(ids), []
        for block in self.blocks:
            x = block(x, cos, sin)
            states.append(x)
        states[-1] = F.rms_norm(x, (x.shape[-1],), self.norm, self.shape.rms_norm_eps)
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token for last hidden states of any leading shape."""
        return F.linear(hidden, self.embed.weight)

    def llama_state(self) -> dict[str, Tensor]:
        """The weights in bfloat16 under the names that LlamaForCausalLM loads."""
        state = {"model.embed_tokens.weight": self.embed.weight, "model.norm.weight": self.norm}
        for number, block in enumerate(self.blocks):
            prefix = f"model.layers.{number}"
            q, k, v = block.qkv.weight.chunk(3)
            gate, up = block.gate_up.weight.chunk(2)
            state |= {
                f"{prefix}.input_layernorm.weight": block.input_norm,
                f"{prefix}.post_attention_layernorm.weight": block.post_norm,
                f"{prefix}.self_attn.q_proj.weight": q,
                f"{prefix}.self_attn.k_proj.weight": k,
                f"{prefix}.self_attn.v_proj.weight": v,
                f"{prefix}.self_attn.o_proj.weight": block.out.weight,
                f"{prefix}.mlp.gate_proj.weight": gate,
                f"{prefix}.mlp.up_proj.weight": up,
                f"{prefix}.mlp.down_proj.weight": block.down.weight,
            }
        return {name: w.detach().to(torch.bfloat16).contiguous() for name, w in state.items()}

    def load_llama_state(self, state: dict[str, Tensor]) -> None:
        """Loads the weights of `llama_state`, in float32."""
        with torch.no_grad():
            self.embed.weight.copy_(state["model.embed_tokens.weight"])
            self.norm.copy_(state["model.norm.weight"])
            for number, block in enumerate(self.blocks):
                layer = f"model.layers.{number}"
                parts = {
                    name: [state[f"{layer}.{each}_proj.weight"] for each in names]
                    for name, names in (
                        ("qkv", ("self_attn.q", "self_attn.k", "self_attn.v")),
                        ("out", ("self_attn.o",)),
                        ("gate_up", ("mlp.gate", "mlp.up")),
                        ("down", ("mlp.down",)),
                    )
                }
                for name, weights in parts.items():
                    getattr(block, name).weight.copy_(torch.cat(weights))
                block.input_norm.copy_(state[f"{layer}.input_layernorm.weight"])
                block.post_norm.copy_(state[f"{layer}.post_attention_layernorm.weight"])

    def llama_config(self) -> dict[str, object]:
        """The content of config.json, without the token ids."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self.shape),
            "attention_bias": False,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }
