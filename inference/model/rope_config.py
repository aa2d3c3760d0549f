"""The rotary embedding of a model, from config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inference.engine.errors import ModelLoadError
from inference.model.config_files import ConfigFields, RopeFields

SCALINGS = ("linear", "llama3", "yarn", "longrope")
_LLAMA3_CONTEXT = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary positions.

    `linear` divides all frequencies by `factor`, `llama3` and `yarn` (arXiv:2309.00071) by
    wavelength, `longrope` (arXiv:2402.13753) by a list of factors.
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = _LLAMA3_CONTEXT
    attention_factor: float = 1.0
    """Is multiplied with the cosines and sines (yarn, longrope)."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    """Rotations within the original context, between which yarn interpolates."""
    truncate: bool = True
    """Round the bounds of yarn's interpolation to whole dimensions."""
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    """Divisors of longrope, for contexts within the original one and for longer ones."""


def parse_rope(fields: ConfigFields) -> RopeFields:
    """The parameters of the rotary embedding, of the layers without a window if they differ.

    transformers 5 writes rope_parameters, transformers 4 wrote rope_theta and rope_scaling.
    """
    rope = fields.rope_parameters or fields.rope_scaling or RopeFields.model_validate({})
    return rope.full_attention or rope


def local_theta(fields: ConfigFields) -> float | None:
    """The base of the layers with a window, if they have one of their own (Gemma 3)."""
    rope = fields.rope_parameters
    if rope is None or rope.sliding_attention is None:
        return fields.rope_local_base_freq
    local = rope.sliding_attention
    if local.kind != "default":
        raise ModelLoadError(
            "config.json: rope_parameters.sliding_attention.rope_type must be default. "
            f"Given: {local.kind!r}"
        )
    return local.rope_theta or fields.rope_local_base_freq


def rope_scaling(rope: RopeFields, fields: ConfigFields, rotary_dim: int) -> RopeScaling | None:
    """The scaling, None for none. Raises ModelLoadError if it is not supported or incomplete."""
    kind = "longrope" if rope.kind == "su" else rope.kind
    if kind == "default":
        return None
    if kind not in SCALINGS:
        raise ModelLoadError(
            f"config.json: rope scaling {kind!r} is not supported; supported are "
            f"{', '.join(SCALINGS)}"
        )
    original = rope.original_max_position_embeddings or fields.original_max_position_embeddings
    if kind == "longrope":
        return _longrope(rope, fields, original or fields.max_position_embeddings, rotary_dim)
    if rope.factor is None:
        raise ModelLoadError(f"config.json: rope scaling {kind!r} needs a factor")
    if kind == "yarn":
        return _yarn(rope, rope.factor, original or fields.max_position_embeddings)
    if rope.low_freq_factor >= rope.high_freq_factor:
        raise ModelLoadError(
            f"config.json: low_freq_factor must be below high_freq_factor "
            f"({rope.high_freq_factor}). Given: {rope.low_freq_factor}"
        )
    return RopeScaling(
        kind=kind,
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position=original or _LLAMA3_CONTEXT,
    )


def _yarn(rope: RopeFields, factor: float, original: int) -> RopeScaling:
    if rope.attention_factor is not None:
        attention_factor = rope.attention_factor
    elif rope.mscale and rope.mscale_all_dim:
        attention_factor = _magnitude(factor, rope.mscale) / _magnitude(factor, rope.mscale_all_dim)
    else:
        attention_factor = _magnitude(factor, 1.0)
    if rope.beta_slow >= rope.beta_fast:
        raise ModelLoadError(
            f"config.json: beta_slow must be below beta_fast ({rope.beta_fast}). "
            f"Given: {rope.beta_slow}"
        )
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position=original,
        attention_factor=attention_factor,
        beta_fast=rope.beta_fast,
        beta_slow=rope.beta_slow,
        truncate=rope.truncate,
    )


def _magnitude(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(
    rope: RopeFields, fields: ConfigFields, original: int, rotary_dim: int
) -> RopeScaling:
    for name, factors in (("short_factor", rope.short_factor), ("long_factor", rope.long_factor)):
        if len(factors) != rotary_dim // 2:
            raise ModelLoadError(
                f"config.json: rope scaling 'longrope' needs a {name} with {rotary_dim // 2} "
                f"numbers. Given: {len(factors)}"
            )
    factor = rope.factor or fields.max_position_embeddings / original
    attention_factor = rope.attention_factor
    if attention_factor is None:
        is_longer = factor > 1 and original > 1
        ratio = math.log(factor) / math.log(original) if is_longer else 0.0
        attention_factor = math.sqrt(1 + ratio)
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_max_position=original,
        attention_factor=attention_factor,
        short_factors=tuple(rope.short_factor),
        long_factors=tuple(rope.long_factor),
    )
