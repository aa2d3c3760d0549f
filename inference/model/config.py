"""A model's configuration, from config.json and generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.engine.errors import ModelLoadError
from inference.model.config_files import (
    ArchitectureFields,
    ConfigFields,
    GenerationFields,
    RopeFields,
    parse_fields,
    read_json,
)
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
    path = folder / "config.json"
    content = read_json(path, required=True)
    architectures = parse_fields(ArchitectureFields, content, path).architectures
    architecture = architectures[0] if architectures else "?"
    if architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"{path}: architecture {architecture} is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    generation_path = folder / "generation_config.json"
    generation = read_json(generation_path, required=False)
    generation_fields = parse_fields(GenerationFields, generation, generation_path)
    eos_token_ids = generation_fields.eos_token_id
    config = _parse(
        architecture,
        parse_fields(ConfigFields, content, path),
        eos_token_ids,
        # Without do_sample the file requests greedy decoding, but the API samples by default: only
        # values that the model's authors chose for sampling become defaults.
        _default_sampling(generation) if generation_fields.do_sample else {},
    )
    _check(config, path)
    return config


def _parse(
    architecture: str,
    fields: ConfigFields,
    eos_token_ids: list[int] | None,
    default_sampling: Mapping[str, float],
) -> ModelConfig:
    num_heads = fields.num_attention_heads
    # transformers 5 writes rope_parameters, transformers 4 wrote rope_theta and rope_scaling.
    rope = fields.rope_parameters or RopeFields.model_validate({})
    has_bias = architecture in _BIAS_BY_CONFIG and fields.attention_bias
    tied = fields.tie_word_embeddings
    if fields.hidden_act != "silu":
        raise ModelLoadError(
            f"config.json: hidden_act {fields.hidden_act!r} is not supported, only silu"
        )
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=fields.num_key_value_heads or num_heads,
        head_dim=fields.head_dim or fields.hidden_size // num_heads,
        max_position=fields.max_position_embeddings,
        rms_norm_eps=fields.rms_norm_eps,
        rope_theta=rope.rope_theta or fields.rope_theta or 10_000.0,
        rope_scaling=_rope_scaling(fields.rope_parameters or fields.rope_scaling or rope),
        # SmolLM3's files omit the field; its default is true.
        tie_word_embeddings=architecture == "SmolLM3ForCausalLM" if tied is None else tied,
        attention_bias=has_bias or architecture == "Qwen2ForCausalLM",
        output_bias=has_bias,
        mlp_bias=fields.mlp_bias,
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_window=_sliding_window(architecture, fields),
        no_rope_layers=_no_rope_layers(architecture, fields),
        dtype=fields.dtype or fields.torch_dtype or "float32",
        eos_token_ids=tuple(fields.eos_token_id if eos_token_ids is None else eos_token_ids),
        default_sampling=default_sampling,
    )


def _check(config: ModelConfig, path: Path) -> None:
    """Raises ModelLoadError if fields contradict each other."""
    if config.num_heads % config.num_kv_heads:
        raise ModelLoadError(
            f"{path}: num_attention_heads must be a multiple of num_key_value_heads "
            f"({config.num_kv_heads}). Given: {config.num_heads}"
        )
    if config.head_dim < 2 or config.head_dim % 2:
        raise ModelLoadError(
            f"{path}: head_dim, or hidden_size / num_attention_heads, must be even and at least 2. "
            f"Given: {config.head_dim}"
        )
    beyond = [number for number in config.eos_token_ids if number >= config.vocab_size]
    if beyond:
        raise ModelLoadError(
            f"{path}: eos_token_id must be below vocab_size ({config.vocab_size}). "
            f"Given: {beyond[0]}"
        )


def _rope_scaling(rope: RopeFields) -> RopeScaling | None:
    if rope.kind == "default":
        return None
    if rope.kind not in ("linear", "llama3"):
        raise ModelLoadError(
            f"config.json: rope scaling {rope.kind!r} is not supported; supported are linear, "
            f"llama3"
        )
    if rope.factor is None:
        raise ModelLoadError(f"config.json: rope scaling {rope.kind!r} needs a factor")
    if rope.low_freq_factor >= rope.high_freq_factor:
        raise ModelLoadError(
            f"config.json: low_freq_factor must be below high_freq_factor "
            f"({rope.high_freq_factor}). Given: {rope.low_freq_factor}"
        )
    return RopeScaling(
        kind=rope.kind,
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position=rope.original_max_position_embeddings,
    )


def _sliding_window(architecture: str, fields: ConfigFields) -> int | None:
    window = fields.sliding_window
    if window is None:
        return None
    num_layers = fields.num_hidden_layers
    if fields.layer_types is not None:
        windowed = [kind == "sliding_attention" for kind in fields.layer_types[:num_layers]]
    elif architecture == "MistralForCausalLM":
        windowed = [True]
    elif not fields.use_sliding_window:
        return None  # Qwen's files set a window and disable it with this field
    elif architecture == "SmolLM3ForCausalLM":
        without = _no_rope_layers(architecture, fields)
        windowed = [number in without for number in range(num_layers)]
    else:
        windowed = [number >= fields.max_window_layers for number in range(num_layers)]
    if windowed and all(windowed):
        return window
    if any(windowed):
        raise ModelLoadError("config.json: a sliding window on some layers only is not supported")
    return None


def _no_rope_layers(architecture: str, fields: ConfigFields) -> frozenset[int]:
    if architecture != "SmolLM3ForCausalLM":
        return frozenset()
    num_layers = fields.num_hidden_layers
    rotates = fields.no_rope_layers  # despite the name, 1 means that the layer has rope
    if rotates is None:
        interval = fields.no_rope_layer_interval
        return frozenset(range(interval - 1, num_layers, interval))
    return frozenset(number for number, value in enumerate(rotates[:num_layers]) if not value)


def _default_sampling(generation: Mapping[str, object]) -> dict[str, float]:
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
