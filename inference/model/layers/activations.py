"""Gates of the feed-forward: half of its inner values decide how much of the others passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.config_files import CLAMP

Gate = Callable[[Tensor, Tensor], Tensor]
"""Takes gates and values of the same shape, and returns the gated values."""

SIGMOID_GAIN = 1.702
"""Of gpt-oss."""


def _clamped_swiglu(gate: Tensor, up: Tensor, *, limit: float, gain: float) -> Tensor:
    gate = gate.clamp(max=limit)
    return (up.clamp(-limit, limit) + 1) * gate * torch.sigmoid(gate * gain)


def _gated(activation: Callable[[Tensor], Tensor]) -> Gate:
    return lambda gate, up: activation(gate) * up


ACTIVATIONS: Mapping[str, Gate] = {
    "silu": _gated(F.silu),
    "gelu_pytorch_tanh": _gated(partial(F.gelu, approximate="tanh")),
    "gelu": _gated(F.gelu),
    "clamped_swiglu": partial(_clamped_swiglu, limit=CLAMP, gain=SIGMOID_GAIN),
}
"""By the names in config.json's `hidden_act`, and gpt-oss' own."""
