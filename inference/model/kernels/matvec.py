"""The product of a matrix and one row, optionally followed by the SwiGLU gate.

With one row the memory bandwidth of reading the matrix is the limit; libraries' kernels, made for
many rows, do not reach it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _matvec(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    product: tl.tensor,
    num_inputs: int,
    num_outputs: int,
    GATES: tl.constexpr,
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
    for start in range(0, num_inputs, INPUTS):
        columns = start + tl.arange(0, INPUTS)
        is_input = columns < num_inputs
        inside = is_output[:, None] & is_input[None, :]
        value = tl.load(x + columns, mask=is_input, other=0.0).to(tl.float32)
        row = tl.load(weight + first[:, None] + columns[None, :], mask=inside, other=0.0)
        sums += row.to(tl.float32) * value[None, :]
        if GATES:
            up = tl.load(weight + second[:, None] + columns[None, :], mask=inside, other=0.0)
            ups += up.to(tl.float32) * value[None, :]
    result = _with_bias(sums, bias + outputs, is_output, BIASED)
    dtype = product.dtype.element_ty
    if GATES:
        gated = _with_bias(ups, bias + num_outputs + outputs, is_output, BIASED)
        # Rounds after each operation, as torch does.
        result = result.to(dtype).to(tl.float32)
        silu = (result / (1.0 + tl.exp(-result))).to(dtype).to(tl.float32)
        result = silu * gated.to(dtype).to(tl.float32)
    tl.store(product + outputs, result.to(dtype), mask=is_output)


@triton.jit
def _with_bias(
    sums: tl.tensor, bias: tl.tensor, is_output: tl.tensor, BIASED: tl.constexpr
) -> tl.tensor:
    """The sum of each row, plus its bias if there is one."""
    result = tl.sum(sums, axis=1)
    if BIASED:
        result += tl.load(bias, mask=is_output, other=0.0).to(tl.float32)
    return result


def matvec(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    gates: bool = False,
) -> Tensor:
    """The product [1, num_outputs] of `x` [1, num_inputs] and `weight`.

    `weight` [num_outputs, num_inputs] has the type of `x`. With `gates` the result is silu(first
    half) * second half of the product.
    """
    x = x.contiguous()
    num_outputs, num_inputs = weight.shape
    assert x.shape == (1, num_inputs), f"one row of {num_inputs}, not {list(x.shape)}"
    # The fastest block on an H200 at the sizes of Llama 3.1 8B; several short rows share a block.
    inputs = min(triton.next_power_of_2(num_inputs), 2048)
    num_rows = 2 * 2048 // inputs
    if gates:
        num_outputs, num_rows = num_outputs // 2, num_rows // 2
    product = x.new_empty((1, num_outputs))
    _matvec[(triton.cdiv(num_outputs, num_rows),)](
        x, weight, x if bias is None else bias, product, num_inputs, num_outputs,
        GATES=gates, BIASED=bias is not None, OUTPUTS=num_rows, INPUTS=inputs, num_warps=2,
    )  # fmt: skip
    return product
