"""A model's configuration, from config.json and generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.engine.errors import ModelLoadError
from inference.model.config_files import (
    CLAMP,
    ArchitectureFields,
    ConfigFields,
    GenerationFields,
    TextFields,
    parse_fields,
    read_json,
)
from inference.model.families import FAMILIES, Bias, Family, Norms
from inference.model.layer_kinds import expert_layers, no_rope_layers, windowed_layers
from inference.model.rope_config import RopeScaling, local_theta, parse_rope, rope_scaling
from mesh.protocol.sampling_params import BOUNDS

logger = logging.getLogger(__name__)

ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu")
"""The supported values of `hidden_act`; families may have others that are no configuration."""

_SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertConfig:
    """The mixture of experts of some layers."""

    layers: frozenset[int]
    num_experts: int
    num_chosen: int
    """Experts that compute a token."""
    intermediate_size: int
    shared_intermediate_size: int = 0
    """Of the expert that computes all tokens; 0 without one."""
    normalises: bool = True
    """The weights of a token's chosen experts add up to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The configuration of a decoder, with the names of Hugging Face's config.json."""

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
    """RMS norm on q and k (Qwen3); the family says whether for each head or for all."""
    sliding_window: int | None
    """Tokens that the layers with a window see; None if no layer has one."""
    full_layers: frozenset[int] = frozenset()
    """Layers without a window in a model with one (Gemma 2 and 3, gpt-oss)."""
    no_rope_layers: frozenset[int]
    """Layers without a rotary embedding: every fourth of SmolLM3 (NoPE, arXiv:2501.18795)."""
    rotary_dim: int | None = None
    """Dimensions of a head that are rotated; None: all."""
    local_rope_theta: float | None = None
    """The base, without scaling, of layers with a window; None if it is that of all (Gemma 3)."""
    attention_scale: float | None = None
    """Is multiplied with the scores; None: 1 / sqrt(head_dim)."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """Is multiplied with what a layer adds to the residual (Granite)."""
    logits_divisor: float = 1.0
    attention_softcap: float | None = None
    """Limit of the scores, by tanh (Gemma 2)."""
    logits_softcap: float | None = None
    activation: str = "silu"
    experts: ExpertConfig | None = None
    dtype: str
    eos_token_ids: tuple[int, ...]
    default_sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The row of the table of families."""
        return FAMILIES[self.architecture]

    def window(self, layer: int) -> int | None:
        """The tokens that a layer sees; None: all."""
        return None if layer in self.full_layers else self.sliding_window

    @property
    def norm_eps(self) -> float:
        """The epsilon of the norms.

        The decoder keeps the residual divided by `residual_multiplier`, instead of multiplying
        what each layer adds: the norms depend on its scale by their epsilon only.
        """
        return self.rms_norm_eps / self.residual_multiplier**2

    @property
    def num_layer_weights(self) -> int:
        """Weights in the matrices of all layers: q, k, v, o, and the feed-forward or experts."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        experts = self.experts
        if experts is None:
            return self.num_layers * (attention + mlp)
        inner = experts.num_experts * experts.intermediate_size + experts.shared_intermediate_size
        num_sparse = len(experts.layers)
        sparse = num_sparse * self.hidden_size * (3 * inner + experts.num_experts)
        return self.num_layers * attention + (self.num_layers - num_sparse) * mlp + sparse

    @property
    def unusual_features(self) -> tuple[str, ...]:
        """Features that only torch's operations compute, not the native or Triton kernels."""
        norms = self.family.norms
        is_usual = {
            "a mixture of experts": self.experts is None,
            f"activation {self.activation}": self.activation == "silu",
            "norms after attention or feed-forward": norms == Norms(),
            "a norm on all heads together": not self.qk_norm or self.family.qk_norm == "head",
            "a sliding window on some layers only": not self.full_layers,
            "two rotary embeddings": self.local_rope_theta is None,
            "a soft cap of scores": self.attention_softcap is None,
            "attention sinks": not self.family.sinks,
        }
        return tuple(feature for feature, usual in is_usual.items() if not usual)


def load_config(folder: Path) -> ModelConfig:
    """The config of the model in `folder`. Raises ModelLoadError that names file and field."""
    path = folder / "config.json"
    content = read_json(path, required=True)
    architectures = parse_fields(ArchitectureFields, content, path).architectures
    architecture = architectures[0] if architectures else "?"
    if architecture not in FAMILIES:
        raise ModelLoadError(
            f"{path}: architecture {architecture} is not supported; "
            f"supported are {', '.join(FAMILIES)}"
        )
    content = {
        **FAMILIES[architecture].defaults,
        **_given(content),
        **_given(parse_fields(TextFields, content, path).text_config),
    }
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


def _given(content: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in content.items() if value is not None}


def _parse(
    architecture: str,
    fields: ConfigFields,
    eos_token_ids: list[int] | None,
    default_sampling: Mapping[str, float],
) -> ModelConfig:
    family = FAMILIES[architecture]
    num_heads = fields.num_attention_heads
    head_dim = fields.head_dim or fields.hidden_size // num_heads
    rope = parse_rope(fields)
    share = rope.partial_rotary_factor or fields.partial_rotary_factor or family.rotary_share
    rotary_dim = int(head_dim * share)
    windowed = windowed_layers(fields, family)
    tied = fields.tie_word_embeddings
    scale = fields.query_pre_attn_scalar
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=fields.num_key_value_heads or num_heads,
        head_dim=head_dim,
        max_position=fields.max_position_embeddings,
        rms_norm_eps=fields.rms_norm_eps,
        rope_theta=rope.rope_theta or fields.rope_theta or family.rope_theta,
        rope_scaling=rope_scaling(rope, fields, rotary_dim),
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        local_rope_theta=local_theta(fields) if windowed else None,
        tie_word_embeddings=family.ties_embeddings if tied is None else tied,
        attention_bias=_has_bias(family.qkv_bias, fields),
        output_bias=_has_bias(family.output_bias, fields),
        mlp_bias=fields.mlp_bias,
        qk_norm=family.qk_norm != "none",
        sliding_window=fields.sliding_window if windowed else None,
        full_layers=frozenset(range(fields.num_hidden_layers)) - windowed
        if windowed
        else frozenset(),
        no_rope_layers=no_rope_layers(fields, family),
        attention_scale=scale**-0.5 if scale else fields.attention_multiplier,
        embedding_multiplier=fields.hidden_size**0.5
        if family.scales_embeddings
        else fields.embedding_multiplier,
        residual_multiplier=fields.residual_multiplier,
        logits_divisor=fields.logits_scaling,
        attention_softcap=fields.attn_logit_softcapping,
        logits_softcap=fields.final_logit_softcapping,
        activation=_activation(fields, family),
        experts=_experts(fields, family),
        dtype=fields.dtype or fields.torch_dtype or "float32",
        eos_token_ids=tuple(fields.eos_token_id if eos_token_ids is None else eos_token_ids),
        default_sampling=default_sampling,
    )


def _has_bias(bias: Bias, fields: ConfigFields) -> bool:
    return bias == "always" or (bias == "config" and fields.attention_bias)


def _activation(fields: ConfigFields, family: Family) -> str:
    if family.activation not in ACTIVATIONS:
        return family.activation  # part of the architecture, not of its configuration
    name = fields.hidden_activation or fields.hidden_act or family.activation
    if family.activation != "silu" and fields.hidden_activation is None:
        name = family.activation  # Gemma's files say gelu, and mean its approximation by tanh
    if name not in ACTIVATIONS:
        raise ModelLoadError(
            f"config.json: hidden_act {name!r} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    return name


def _experts(fields: ConfigFields, family: Family) -> ExpertConfig | None:
    layers = expert_layers(fields, family)
    if family.experts is None or not layers:
        return None
    num_experts, num_chosen = fields.num_experts, fields.num_experts_per_tok
    if num_experts is None or num_chosen is None or num_chosen > num_experts:
        raise ModelLoadError(
            "config.json: num_experts_per_tok must be at most num_experts (num_local_experts). "
            f"Given: {num_chosen} of {num_experts}"
        )
    if fields.swiglu_limit != CLAMP:
        raise ModelLoadError(
            f"config.json: swiglu_limit must be {CLAMP}. Given: {fields.swiglu_limit}"
        )
    shared = fields.shared_expert_intermediate_size if family.experts.shared else None
    return ExpertConfig(
        layers=layers,
        num_experts=num_experts,
        num_chosen=num_chosen,
        intermediate_size=fields.moe_intermediate_size or fields.intermediate_size,
        shared_intermediate_size=shared or 0,
        normalises=family.experts.always_normalises or fields.norm_topk_prob,
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
    rotary_dim = config.head_dim if config.rotary_dim is None else config.rotary_dim
    if rotary_dim < 2 or rotary_dim % 2:
        raise ModelLoadError(
            f"{path}: partial_rotary_factor must give an even number of dimensions of a head "
            f"({config.head_dim}). Given: {rotary_dim}"
        )
    beyond = [number for number in config.eos_token_ids if number >= config.vocab_size]
    if beyond:
        raise ModelLoadError(
            f"{path}: eos_token_id must be below vocab_size ({config.vocab_size}). "
            f"Given: {beyond[0]}"
        )


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
