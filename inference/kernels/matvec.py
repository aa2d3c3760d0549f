"""A matrix times one row, with the norm before it and the gate behind it.

With one row a product is a pass over the matrix and nothing else. The libraries' kernels are made
for many rows: they leave a part of the memory's bandwidth unused, and what stands around a product
costs as many launches as there are products. A program computes a few outputs, and the norm of the
row for itself: the row is small and stays in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_OUTPUTS = 4
"""Rows of the matrix in a program; a gate and what it is for are two."""

_BYTES = 2048
"""Of a row of the matrix at a time."""

_NUM_WARPS = 4


@triton.jit
def _matvec(
    x: tl.tensor,
    residual: tl.tensor,
    norm: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    product: tl.tensor,
    total: tl.tensor,
    eps: float,
    num_inputs: int,
    num_outputs: int,
    NORMS: tl.constexpr,
    ADDS: tl.constexpr,
    GATES: tl.constexpr,
    SCALES: tl.constexpr,
    BIASED: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
) -> None:
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < num_outputs
    first = outputs.to(tl.int64) * num_inputs
    second = (outputs + num_outputs).to(tl.int64) * num_inputs
    sums = tl.zeros([OUTPUTS, INPUTS], dtype=tl.float32)
    ups = tl.zeros([OUTPUTS, INPUTS], dtype=tl.float32)
    squares = tl.zeros([INPUTS], dtype=tl.float32)
    for start in range(0, num_inputs, INPUTS):
        columns = start + tl.arange(0, INPUTS)
        is_input = columns < num_inputs
        inside = is_output[:, None] & is_input[None, :]
        value = tl.load(x + columns, mask=is_input, other=0.0)
        if ADDS:
            # Rounded to the activations' type before the norm, as torch rounds it.
            added = value.to(tl.float32) + tl.load(residual + columns, mask=is_input, other=0.0)
            value = added.to(value.dtype)
            tl.store(total + columns, value, mask=is_input & (tl.program_id(0) == 0))
        wide = value.to(tl.float32)
        if NORMS:
            squares += wide * wide
            wide *= tl.load(norm + columns, mask=is_input, other=0.0).to(tl.float32)
        row = tl.load(weight + first[:, None] + columns[None, :], mask=inside, other=0.0)
        sums += row.to(tl.float32) * wide[None, :]
        if GATES:
            up = tl.load(weight + second[:, None] + columns[None, :], mask=inside, other=0.0)
            ups += up.to(tl.float32) * wide[None, :]
    scale = 1.0
    if NORMS:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / num_inputs + eps)
    result = tl.sum(sums, axis=1) * scale
    if SCALES:
        result *= tl.load(scales + outputs, mask=is_output, other=0.0)
    if BIASED:
        result += tl.load(bias + outputs, mask=is_output, other=0.0).to(tl.float32)
    dtype = product.dtype.element_ty
    if GATES:
        gated = tl.sum(ups, axis=1) * scale
        if SCALES:
            gated *= tl.load(scales + num_outputs + outputs, mask=is_output, other=0.0)
        if BIASED:
            gated += tl.load(bias + num_outputs + outputs, mask=is_output, other=0.0).to(tl.float32)
        # Rounded between the steps as torch rounds it.
        result = result.to(dtype).to(tl.float32)
        silu = (result / (1.0 + tl.exp(-result))).to(dtype).to(tl.float32)
        result = silu * gated.to(dtype).to(tl.float32)
    tl.store(product + outputs, result.to(dtype), mask=is_output)


def matvec(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gates: bool = False,
) -> tuple[Tensor, Tensor]:
    """The product [1, num_outputs] of `x` [1, num_inputs] and `weight`, and what was normed.

    `weight` [num_outputs, num_inputs] is in the type of `x`, or in float8_e4m3fn with `scales`
    [num_outputs]. A `residual` is added to `x` first, then the sum is normed with the weights
    `norm` [num_inputs]. With `gates` the first half of the product is a gate for the second one,
    and the result half as wide.
    """
    x = x.contiguous()
    num_outputs, num_inputs = weight.shape
    assert x.shape == (1, num_inputs), f"one row of {num_inputs}, not {list(x.shape)}"
    if gates:
        num_outputs //= 2
    product = x.new_empty((1, num_outputs))
    total = x if residual is None else x.new_empty(x.shape)
    outputs = _OUTPUTS // 2 if gates else _OUTPUTS
    _matvec[(triton.cdiv(num_outputs, outputs),)](
        x,
        x if residual is None else residual,
        x if norm is None else norm,
        weight,
        x if scales is None else scales,
        x if bias is None else bias,
        product,
        total,
        eps,
        num_inputs,
        num_outputs,
        NORMS=norm is not None,
        ADDS=residual is not None,
        GATES=gates,
        SCALES=scales is not None,
        BIASED=bias is not None,
        OUTPUTS=outputs,
        INPUTS=_BYTES // weight.element_size(),
        num_warps=_NUM_WARPS,
    )
    return product, total
