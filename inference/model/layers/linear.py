"""The matrices of a decoder, in the activations' type or quantised to four or eight bits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from inference.model.layers.grouped import GroupedWeight
from inference.model.layers.quantise import Quantise, quantise_rows


class Linear:
    """A weight matrix [num_outputs, num_inputs] with an optional bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.scales: Tensor | None = None
        """Of the outputs or their blocks of inputs; None unless the weights are quantised."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class GroupedLinear(Linear):
    """A matrix of integers with scales for groups of inputs, expanded in each product.

    Codes of four bits take a byte in memory; the native decoder packs two of them into one.
    """

    def __init__(self, weight: GroupedWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight.codes, bias)
        self.grouped = weight
        self.scales: Tensor = weight.scales

    def __call__(self, x: Tensor) -> Tensor:
        # Inputs may be padded to whole groups.
        weight = self.grouped.expand(x.dtype)[:, : x.shape[-1]]
        return F.linear(x, weight, self.bias)


class Fp8Linear(Linear):
    """A matrix in float8_e4m3fn with one scale per output; activations are quantised, too."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, quantise: Quantise = quantise_rows
    ) -> None:
        """`quantise` quantises the activations, by an implementation for their device."""
        rows, scales = quantise_rows(weight)
        super().__init__(rows, bias)
        self.scales: Tensor = scales.view(1, -1)
        self._quantise = quantise

    def __call__(self, x: Tensor) -> Tensor:
        rows, scales = self._quantise(x)
        if x.device.type == "cpu":
            # The same quantised values, multiplied in float32: slow but exact.
            wide = F.linear(rows.float(), self.weight.float())
            product = (wide * scales * self.scales).to(x.dtype)
        else:
            product = torch._scaled_mm(
                rows,
                self.weight.t(),
                scale_a=scales,
                scale_b=self.scales,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        return product if self.bias is None else product + self.bias
