"""Rotary position embedding (RoFormer, arXiv:2104.09864) in Llama's half-rotation layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.model.config import ModelConfig, RopeScaling


class RotaryEmbedding:
    """Cosines and sines of every position, computed once in float32."""

    def __init__(self, config: ModelConfig, max_position: int, device: torch.device) -> None:
        frequencies = inverse_frequencies(config)
        positions = torch.arange(max_position, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)  # [max_position, head_dim / 2]
        self._cos = angles.cos().to(device)
        self._sin = angles.sin().to(device)

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


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """[head_dim / 2] radians per position, with the config's scaling."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**steps
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


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
