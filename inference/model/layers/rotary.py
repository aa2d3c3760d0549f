"""Rotary position embedding (RoFormer, arXiv:2104.09864) in Llama's half-rotation layout."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.config import ModelConfig
from inference.model.rope_config import RopeScaling


class RotaryEmbedding:
    """Cosines and sines of every position, computed once in float32.

    They contain all that scales queries and keys alike: the scale of the scores where it is not
    1 / sqrt(head_dim), and a scaling's attention factor.
    """

    def __init__(
        self,
        config: ModelConfig,
        max_position: int,
        device: torch.device,
        *,
        is_local: bool = False,
    ) -> None:
        """`is_local`: of the layers with a window, in a model that has two rotary embeddings."""
        rotary_dim = config.rotary_dim or config.head_dim
        scaling = config.rope_scaling
        if is_local:
            assert config.local_rope_theta is not None, "the model has one rotary embedding"
            frequencies = plain_frequencies(config.local_rope_theta, rotary_dim)
            scaling = None
        else:
            frequencies = inverse_frequencies(config, max_position)
        positions = torch.arange(max_position, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)  # [max_position, rotary_dim / 2]
        factor = 1.0 if scaling is None else scaling.attention_factor
        scale = config.attention_scale
        both = 1.0 if scale is None else math.sqrt(scale * math.sqrt(config.head_dim))
        # Dimensions that are not rotated have an angle of zero.
        unrotated = (0, (config.head_dim - rotary_dim) // 2)
        self._cos = (F.pad(angles.cos() * factor, unrotated, value=1.0) * both).to(device)
        self._sin = (F.pad(angles.sin() * factor, unrotated) * both).to(device)

    @property
    def tables(self) -> tuple[Tensor, Tensor]:
        """All cosines and sines, each [max_position, head_dim / 2] in float32."""
        return self._cos, self._sin

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines at these positions, each [num_tokens, 1, head_dim / 2]."""
        return (
            self._cos[positions].unsqueeze(1).to(dtype),
            self._sin[positions].unsqueeze(1).to(dtype),
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + head_dim / 2) of `x` [num_tokens, num_heads, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def half_order(head_dim: int, rotary_dim: int, *, rotates_pairs: bool) -> Tensor:
    """The order of a head's dimensions in which the rotated pairs are (i, i + head_dim / 2).

    A checkpoint rotates the first `rotary_dim` dimensions, as (i, i + rotary_dim / 2) or as
    (2i, 2i + 1). Queries and keys in the same order have the same scores.
    """
    rotated = torch.arange(rotary_dim)
    firsts, seconds = (rotated[0::2], rotated[1::2]) if rotates_pairs else rotated.chunk(2, dim=0)
    others = torch.arange(rotary_dim, head_dim).chunk(2) if rotary_dim < head_dim else ()
    return torch.cat((firsts, *others[:1], seconds, *others[1:]))


def head_order(config: ModelConfig) -> Tensor | None:
    """`half_order` of a model; None if its checkpoint has that order already."""
    rotary_dim = config.rotary_dim or config.head_dim
    if rotary_dim == config.head_dim and not config.family.rotates_pairs:
        return None
    return half_order(config.head_dim, rotary_dim, rotates_pairs=config.family.rotates_pairs)


def ordered_heads(rows: Tensor, order: Tensor | None, head_dim: int) -> Tensor:
    """Rows [num_heads * head_dim, ...] with those of each head in this order."""
    if order is None:
        return rows
    heads = rows.view(-1, head_dim, *rows.shape[1:])
    return heads[:, order.to(rows.device)].view(rows.shape)


def plain_frequencies(theta: float, rotary_dim: int) -> Tensor:
    """[rotary_dim / 2] radians per position, without scaling."""
    steps = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return 1.0 / theta**steps


def inverse_frequencies(config: ModelConfig, max_position: int) -> Tensor:
    """[rotary_dim / 2] radians per position, with the config's scaling for that context length."""
    rotary_dim = config.rotary_dim or config.head_dim
    frequencies = plain_frequencies(config.rope_theta, rotary_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "yarn":
        return _yarn(frequencies, scaling, config.rope_theta, rotary_dim)
    if scaling.kind == "longrope":
        # For all positions alike, by the longest one, as vLLM does: the cache has rotated keys.
        is_long = max_position > scaling.original_max_position
        factors = scaling.long_factors if is_long else scaling.short_factors
        return frequencies / torch.tensor(factors)
    return _llama3(frequencies, scaling)


def _yarn(frequencies: Tensor, scaling: RopeScaling, theta: float, rotary_dim: int) -> Tensor:
    """Dimensions that rotate often keep their frequency, slow ones are divided by the factor."""

    def dimension(rotations: float) -> float:
        wavelengths = scaling.original_max_position / (rotations * 2 * math.pi)
        return rotary_dim * math.log(wavelengths) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low if high != low else 0.001
    slow = ((torch.arange(rotary_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies / scaling.factor * slow + frequencies * (1 - slow)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1's scaling: stretches long wavelengths, keeps short ones, interpolates others."""
    wavelengths = 2 * math.pi / frequencies
    longest = scaling.original_max_position / scaling.low_freq_factor
    shortest = scaling.original_max_position / scaling.high_freq_factor
    smooth = (scaling.original_max_position / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > longest, frequencies / scaling.factor, between)
    return torch.where(wavelengths < shortest, frequencies, scaled)
