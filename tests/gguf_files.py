"""Writes GGUF files as llama.cpp's converter does: its names, keys and order of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
PERMUTED = ("llama", "smollm3")


class Vocabulary(dict[str, Any]):
    """Metadata under `tokenizer.`, without that prefix."""


def byte_vocabulary(size: int) -> Vocabulary:
    """Bytes as tokens without merges, and three control tokens; `size` in all, at most 259."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = sorted(ByteLevel.alphabet())[: size - 3]
    tokens += [f"<|special_{n}|>" for n in range(size - 1 - len(tokens))] + ["<|im_end|>"]
    kinds = [1] * (size - 3) + [3] * 3
    return Vocabulary(
        {
            "ggml.model": "gpt2",
            "ggml.pre": "default",
            "ggml.tokens": tokens,
            "ggml.token_type": kinds[:size],
            "ggml.eos_token_id": size - 1,
            "chat_template": CHAT_TEMPLATE,
        }
    )


def write_gguf(
    path: Path,
    model: Any,
    vocabulary: Mapping[str, Any],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model of transformers; `kind` is the type of the matrices, the rest is float32.

    `changes` replaces metadata by key; None leaves a key out.
    """
    config = model.config
    architecture = ARCHITECTURES[type(model).__name__]
    writer = gguf.GGUFWriter(path, architecture)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata: dict[str, Any] = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": rope["rope_theta"],
        **{f"{architecture}.{key}": value for key, value in _own_metadata(config, rope).items()},
        **{f"tokenizer.{key}": value for key, value in vocabulary.items()},
        **(changes or {}),
    }
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, values in _tensors(model, architecture):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _own_metadata(config: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that Llama's files do not have."""
    values: dict[str, Any] = {}
    for key, name in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    ):
        if getattr(config, name, None) and config.model_type not in ("qwen2", "mistral"):
            values[key] = getattr(config, name)
    if config.model_type == "gemma3_text":
        values["attention.sliding_window_pattern"] = config.layer_types.index("full_attention") + 1
    if rope["rope_type"] == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "longrope":
        values |= {
            "rope.dimension_count": 2 * len(rope["long_factor"]),
            "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        }
    return values


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, Sequence):
        writer.add_array(key, value)


def _tensors(model: Any, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    config = model.config
    for name in ("long_factor", "short_factor"):
        if name in config.rope_parameters:
            stem = f"rope_factors_{name.removesuffix('_factor')}"
            yield f"{stem}.weight", np.array(config.rope_parameters[name], dtype=np.float32)
    kind = gguf.MODEL_ARCH[architecture.upper()]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for projection, num_heads in heads.items():
            if f".{projection}." in name and architecture in PERMUTED:
                rows = values.reshape(num_heads, 2, -1, *values.shape[1:])
                values = rows.swapaxes(1, 2).reshape(values.shape)
        if architecture.startswith("gemma") and "norm" in name:
            values = values + 1
        yield names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(values)
