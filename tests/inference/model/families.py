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

_SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_OWN_HEADS = {name: value for name, value in _SMALL.items() if name != "head_dim"}
"""For the classes whose heads share hidden_size."""
_GEMMA = {**_SMALL, "num_attention_heads": 2, "query_pre_attn_scalar": 12, "sliding_window": 8}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
    "original_max_position_embeddings": 32,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
    "rope_theta": 150_000.0,
}

TABLE_FAMILIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "gemma": (transformers.GemmaConfig, _SMALL),
    "gemma2": (
        transformers.Gemma2Config,
        {**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            **_GEMMA,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": (
        transformers.Phi3Config,
        {**_SMALL, "hidden_size": 64, "sliding_window": 24, "tie_word_embeddings": True},
    ),
    "phi4-mini-longrope": (
        transformers.Phi3Config,
        {
            **_OWN_HEADS,
            "rope_parameters": _LONGROPE,
            "original_max_position_embeddings": 32,
        },
    ),
    "olmo2": (transformers.Olmo2Config, {**_OWN_HEADS, "attention_bias": True}),
    "granite": (
        transformers.GraniteConfig,
        {
            **_OWN_HEADS,
            "hidden_size": 64,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.05,
            "logits_scaling": 3.0,
        },
    ),
    "glm": (transformers.GlmConfig, {**_SMALL, "hidden_size": 64, "eos_token_id": [198]}),
    "glm4": (transformers.Glm4Config, {**_SMALL, "attention_bias": True, "eos_token_id": [198]}),
    "qwen2-moe": (
        transformers.Qwen2MoeConfig,
        {
            **_OWN_HEADS,
            **_EXPERTS,
            "num_experts": 5,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [0],
            "use_sliding_window": True,
            "sliding_window": 8,
        },
    ),
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        {**_SMALL, **_EXPERTS, "num_experts": 4, "norm_topk_prob": True},
    ),
    "mixtral": (
        transformers.MixtralConfig,
        {**_OWN_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gpt-oss": (
        transformers.GptOssConfig,
        {
            **_SMALL,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": _GPT_OSS_ROPE,
        },
    ),
    "llama-yarn": (
        transformers.LlamaConfig,
        {**_SMALL, "hidden_size": 64, "rope_parameters": {**_GPT_OSS_ROPE, "truncate": True}},
    ),
}
"""The families that differ from Llama in more than options; two layers each."""


@cache
def reference(family: str) -> Any:
    """The model in transformers: reproducible random weights, with large biases and norms."""
    config_class, values = {**FAMILIES, **TABLE_FAMILIES}[family]
    torch.manual_seed(sum(map(ord, family)))
    config = config_class(**{**_SHAPE, **values})
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
