"""Small random models, one for each supported architecture and option."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB_SIZE = 199

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}

FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama-tied-gqa": (
        transformers.LlamaConfig,
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama-untied-mha": (
        transformers.LlamaConfig,
        {"num_key_value_heads": 4, "tie_word_embeddings": False},
    ),
    "llama3-rope-bias": (
        transformers.LlamaConfig,
        {
            "num_key_value_heads": 1,
            "rope_parameters": _LLAMA3_ROPE,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "llama-linear-rope": (
        transformers.LlamaConfig,
        {
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
        },
    ),
    "mistral-window": (
        transformers.MistralConfig,
        {"num_key_value_heads": 2, "sliding_window": 24, "head_dim": 32},
    ),
    "qwen2": (transformers.Qwen2Config, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-untied-window": (
        transformers.Qwen2Config,
        {
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 20,
            "max_window_layers": 0,
        },
    ),
    "smollm3": (
        transformers.SmolLM3Config,
        {"num_key_value_heads": 2, "no_rope_layers": [1, 0, 1]},
    ),
    "qwen3-bias": (
        transformers.Qwen3Config,
        {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True},
    ),
    "qwen3": (transformers.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 32}),
}


@cache
def reference(family: str) -> Any:
    """The model in transformers: reproducible random weights, with large biases and norms."""
    config_class, values = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    config = config_class(**_SHAPE, **values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "embed" not in name:
                weight.mul_(4)
    return model.eval().float()


def save(family: str, folder: Path) -> None:
    """Saves the reference model as a Hugging Face folder."""
    reference(family).save_pretrained(folder)


@torch.inference_mode()
def _logits(model: Any, token_ids: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.float()


def reference_logits(family: str, token_ids: list[int]) -> torch.Tensor:
    """Logits [num_tokens, vocab_size] of the reference in float32."""
    return _logits(reference(family), token_ids)


@torch.inference_mode()
def reference_greedy(family: str, prompt: list[int], num_tokens: int) -> list[int]:
    """The greedy continuation; recomputes the whole sequence for each token."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        token_ids.append(int(reference_logits(family, token_ids)[-1].argmax()))
    return token_ids[len(prompt) :]


@cache
def _bfloat16(family: str) -> Any:
    return copy.deepcopy(reference(family)).bfloat16()


def bfloat16_logits(family: str, token_ids: list[int]) -> torch.Tensor:
    """Logits [num_tokens, vocab_size] of the reference in bfloat16."""
    return _logits(_bfloat16(family), token_ids)


@cache
def _bfloat16_weights(family: str) -> Any:
    return copy.deepcopy(_bfloat16(family)).float()


def bfloat16_weights_logits(family: str, token_ids: list[int]) -> torch.Tensor:
    """Logits [num_tokens, vocab_size] with bfloat16 weights and float32 activations."""
    return _logits(_bfloat16_weights(family), token_ids)
