"""Converts a GGUF file's metadata to config.json and generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mesh.hub.gguf.metadata import GgufError, Metadata
from mesh.hub.gguf.tokenizer import TokenType

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # Mistral's files have the same architecture
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
"""The classes of transformers by llama.cpp's names of architectures."""

END_TOKENS = frozenset(
    [
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"),
        *("<end_of_turn>", "<|end|>"),
    ]
)
"""Control tokens that end a generation if a vocabulary has them, as in llama.cpp."""

_SAMPLING: Mapping[str, tuple[str, float]] = {
    "temperature": ("temp", 0.8),
    "top_k": ("top_k", 40),
    "top_p": ("top_p", 0.95),
    "min_p": ("min_p", 0.05),
    "repetition_penalty": ("penalty_repeat", 1.0),
}
"""Keys and llama.cpp's defaults by our names of the parameters."""

_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
"""The parameters of every published model with `llama3` scaling; only the factor differs."""


def model_config(metadata: Metadata) -> dict[str, Any]:
    """The content of config.json. Raises GgufError if the architecture is not supported."""
    name = metadata.architecture
    if name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise GgufError(
            f"{metadata.path}: architecture {name!r} is not supported; supported are {supported}"
        )
    hidden_size = int(metadata.require("embedding_length"))
    num_heads = int(metadata.require("attention.head_count"))
    head_dim = int(metadata.get("attention.key_length") or hidden_size // num_heads)
    return {
        "architectures": [ARCHITECTURES[name]],
        "vocab_size": _vocab_size(metadata),
        "hidden_size": hidden_size,
        "intermediate_size": int(metadata.require("feed_forward_length")),
        "num_hidden_layers": int(metadata.require("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(metadata.get("attention.head_count_kv") or num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": int(metadata.require("context_length")),
        "rms_norm_eps": float(metadata.require("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(metadata.get("rope.freq_base") or 10_000.0),
        "rope_scaling": _rope_scaling(metadata, head_dim),
        "hidden_act": "gelu_pytorch_tanh" if name.startswith("gemma") else "silu",
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
        "attention_bias": "blk.0.attn_q.bias" in metadata.shapes,
        "torch_dtype": _dtype(metadata),
        "eos_token_id": _end_token_ids(metadata),
        **_OF_ARCHITECTURE.get(name, _nothing)(metadata, head_dim),
    }


def _nothing(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    return {}


def _gemma2(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    """The fields of Gemma 2 and 3 that Llama does not have."""
    fields: dict[str, Any] = {"query_pre_attn_scalar": head_dim}
    if metadata.require("block_count") in _GEMMA_27B_LAYERS:
        # Files do not have it; llama.cpp, too, recognises these models by their size.
        heads = metadata.require("attention.head_count")
        fields["query_pre_attn_scalar"] = metadata.require("embedding_length") / heads
    for theirs, ours in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
        ("attention.sliding_window_pattern", "sliding_window_pattern"),
    ):
        if metadata.get(theirs):
            fields[ours] = metadata.get(theirs)
    return fields


def _phi3(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    """The fields of Phi-3 and Phi-4 that Llama does not have."""
    rotary_dim = int(metadata.get("rope.dimension_count") or head_dim)
    fields: dict[str, Any] = {"partial_rotary_factor": rotary_dim / head_dim}
    window = int(metadata.get("attention.sliding_window") or 0)
    if 0 < window < metadata.require("context_length"):
        fields["sliding_window"] = window
    if _LONG_FACTORS in metadata.shapes:
        fields["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": list(metadata.floats(_SHORT_FACTORS)),
            "long_factor": list(metadata.floats(_LONG_FACTORS)),
            "original_max_position_embeddings": int(
                metadata.require("rope.scaling.original_context_length")
            ),
            "attention_factor": metadata.get("rope.scaling.attn_factor"),
        }
    return fields


_OF_ARCHITECTURE: Mapping[str, Callable[[Metadata, int], dict[str, Any]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma2,
    "phi3": _phi3,
}
_GEMMA_27B_LAYERS = (46, 62)
_LONG_FACTORS, _SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """The content of generation_config.json: end tokens and the default sampling parameters.

    Those come from `general.sampling.*`, or else are llama.cpp's own defaults: the users of such
    files know their models with these.
    """
    sampling = {
        name: metadata.values.get(f"general.sampling.{key}", default)
        for name, (key, default) in _SAMPLING.items()
    }
    return {"eos_token_id": _end_token_ids(metadata), "do_sample": True, **sampling}


def _vocab_size(metadata: Metadata) -> int:
    try:
        return metadata.shapes["token_embd.weight"][0]
    except KeyError:
        raise GgufError(f"{metadata.path}: tensor token_embd.weight is missing") from None


def _dtype(metadata: Metadata) -> str:
    """The type to compute in: that of the file, and bfloat16 for quantised weights."""
    kinds = {"F32": "float32", "F16": "float16"}
    return kinds.get(metadata.types.get("blk.0.attn_q.weight", ""), "bfloat16")


def _end_token_ids(metadata: Metadata) -> list[int]:
    values = metadata.values
    ids = {
        int(values[key])
        for key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        if key in values
    }
    tokens = values.get("tokenizer.ggml.tokens") or ()
    types = values.get("tokenizer.ggml.token_type") or ()
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=False)):
        if kind == TokenType.CONTROL and token in END_TOKENS:
            ids.add(token_id)
    return sorted(ids)


def _rope_scaling(metadata: Metadata, head_dim: int) -> dict[str, Any] | None:
    kind = metadata.get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(metadata.require("rope.scaling.factor"))}
    if kind not in ("none", "longrope"):
        raise GgufError(
            f"{metadata.path}: rope scaling {kind!r} is not supported; supported are linear, "
            "llama3, longrope"
        )
    if _ROPE_FACTORS not in metadata.shapes:
        return None
    return _llama3_scaling(metadata, head_dim)


def _llama3_scaling(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    """The parameters of `llama3` scaling, of which the file has only the resulting divisors.

    Raises GgufError if other parameters than the published ones would be needed.
    """
    divisors = metadata.floats(_ROPE_FACTORS)
    factor = max(divisors)
    theta = float(metadata.get("rope.freq_base") or 10_000.0)
    for index, found in enumerate(divisors):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        smooth = (_LLAMA3_CONTEXT / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW)
        smooth = min(1.0, max(0.0, smooth))
        expected = 1 / ((1 - smooth) / factor + smooth)
        if not math.isclose(found, expected, rel_tol=1e-3):
            raise GgufError(
                f"{metadata.path}: tensor {_ROPE_FACTORS} has divisor {found:g} at {index}, "
                f"llama3 scaling by {factor:g} would have {expected:g}; others are not supported"
            )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }
