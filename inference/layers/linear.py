"""Matrices of a decoder: in the activations' type, or in int8 to save memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """A matrix and, for some models, a bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Int8Linear(Linear):
    """A matrix stored in int8 with a scale an output; the product is in the activations' type."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        scales = weight.float().abs().amax(dim=1).clamp(min=1e-12) / 127.0
        super().__init__((weight.float() / scales[:, None]).round().to(torch.int8), bias)
        self._scales = scales.to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        product = F.linear(x, self.weight.to(x.dtype)) * self._scales
        return product if self.bias is None else product + self.bias
