"""Converts a GGUF file's metadata to config.json and generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mesh.hub.gguf.metadata import GgufError, Metadata
from mesh.hub.gguf.tokenizer import TokenType

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # Mistral's files have the same architecture
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""The classes of transformers by llama.cpp's names of architectures."""

END_TOKENS = frozenset(
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"]
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
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in metadata.shapes,
        "attention_bias": "blk.0.attn_q.bias" in metadata.shapes,
        "torch_dtype": _dtype(metadata),
        "eos_token_id": _end_token_ids(metadata),
    }


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
    if kind != "none":
        raise GgufError(
            f"{metadata.path}: rope scaling {kind!r} is not supported; supported are linear, llama3"
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
