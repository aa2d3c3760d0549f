"""Parses the parts of config.json and generation_config.json that inference needs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.engine.errors import ModelLoadError
from mesh.protocol.sampling_params import BOUNDS

logger = logging.getLogger(__name__)

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
_BIAS_BY_CONFIG = ("LlamaForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM")
"""Architectures with an `attention_bias` field, which applies to q, k, v and the output."""

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary positions: `linear`, or `llama3` by wavelength."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The configuration of a Llama-family decoder, with the names of Hugging Face's config.json."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    attention_bias: bool
    """Biases on q, k and v (Qwen2)."""
    output_bias: bool
    """A bias on the attention's output projection."""
    mlp_bias: bool
    qk_norm: bool
    """RMS norm on each head's q and k (Qwen3)."""
    sliding_window: int | None
    no_rope_layers: frozenset[int]
    """Layers without a rotary embedding: every fourth of SmolLM3 (NoPE, arXiv:2501.18795)."""
    dtype: str
    eos_token_ids: tuple[int, ...]
    default_sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_layer_weights(self) -> int:
        """Weights in the matrices of all layers: q, k, v, o and three of the feed-forward."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp)


def load_config(folder: Path) -> ModelConfig:
    """The config of the model in `folder`. Raises ModelLoadError that names file and field."""
    config = _read_json(folder / "config.json", required=True)
    generation = _read_json(folder / "generation_config.json", required=False)
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"{folder}/config.json: architecture {architecture} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    try:
        return _parse(architecture, config, generation)
    except KeyError as error:
        raise ModelLoadError(f"{folder}/config.json: {error} is missing") from error


def _parse(architecture: str, config: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    num_heads = config["num_attention_heads"]
    # transformers 5 writes rope_parameters, transformers 4 wrote rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or {}
    has_bias = architecture in _BIAS_BY_CONFIG and bool(config.get("attention_bias"))
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelLoadError(f"config.json: hidden_act {activation!r} is not supported, only silu")
    return ModelConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        max_position=config["max_position_embeddings"],
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rope_scaling=_rope_scaling(rope or config.get("rope_scaling") or {}),
        # SmolLM3's files omit the field; its default is true.
        tie_word_embeddings=config.get("tie_word_embeddings", architecture == "SmolLM3ForCausalLM"),
        attention_bias=has_bias or architecture == "Qwen2ForCausalLM",
        output_bias=has_bias,
        mlp_bias=config.get("mlp_bias", False),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_window=_sliding_window(architecture, config),
        no_rope_layers=_no_rope_layers(architecture, config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        eos_token_ids=_eos_token_ids(config, generation),
        default_sampling=_default_sampling(generation),
    )


def _rope_scaling(rope: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise ModelLoadError(
            f"config.json: rope scaling {kind!r} is not supported; supported are linear, llama3"
        )
    return RopeScaling(
        kind=kind,
        factor=float(rope["factor"]),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_position=int(rope.get("original_max_position_embeddings", 8192)),
    )


def _sliding_window(architecture: str, config: dict[str, Any]) -> int | None:
    window = config.get("sliding_window")
    if window is None:
        return None
    num_layers = config["num_hidden_layers"]
    types = config.get("layer_types")
    if types is not None:
        windowed = [kind == "sliding_attention" for kind in types[:num_layers]]
    elif architecture == "MistralForCausalLM":
        windowed = [True]
    elif not config.get("use_sliding_window"):
        return None  # Qwen's files set a window and disable it with this field
    elif architecture == "SmolLM3ForCausalLM":
        without = _no_rope_layers(architecture, config)
        windowed = [number in without for number in range(num_layers)]
    else:
        first = config.get("max_window_layers", 28)
        windowed = [number >= first for number in range(num_layers)]
    if all(windowed):
        return int(window)
    if any(windowed):
        raise ModelLoadError("config.json: a sliding window on some layers only is not supported")
    return None


def _no_rope_layers(architecture: str, config: dict[str, Any]) -> frozenset[int]:
    if architecture != "SmolLM3ForCausalLM":
        return frozenset()
    num_layers = config["num_hidden_layers"]
    rotates = config.get("no_rope_layers")  # despite the name, 1 means that the layer has rope
    if rotates is None:
        interval = config.get("no_rope_layer_interval", 4)
        return frozenset(range(interval - 1, num_layers, interval))
    return frozenset(number for number, value in enumerate(rotates[:num_layers]) if not value)


def _eos_token_ids(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _default_sampling(generation: dict[str, Any]) -> dict[str, float]:
    # Without do_sample the file requests greedy decoding, but the API samples by default: only
    # values that the model's authors chose for sampling become defaults.
    if not generation.get("do_sample"):
        return {}
    defaults: dict[str, float] = {}
    for name in _SAMPLING_DEFAULTS:
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and BOUNDS[name].allow(value):
            defaults[name] = value
        else:  # as a default it would make every request fail that does not set the parameter
            limit = f"{name} must be {BOUNDS[name].limit}"
            logger.warning("default in generation_config.json ignored", extra={"reason": limit})
    return defaults


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file():
        if required:
            raise ModelLoadError(f"{path} is missing")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object")
    return content
