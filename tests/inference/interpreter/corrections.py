"""Corrects Triton's interpreter where its results differ from a GPU's.

The interpreter stores types that numpy lacks as their bits. Its matrix product multiplies
bfloat16's bits, which Triton documents as unsupported, and misreads eight-bit floats; its rounding
loses the carry from the mantissa to the exponent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TYPES = {
    tl.float32: torch.float32,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
}
_BITS = {tl.float32: np.uint32, tl.bfloat16: np.uint16, tl.float8e4nv: np.uint8}


def convert(values: Any, kind: Any, to: Any, rounding: Any) -> Any:
    """Converts the bits of `values` from the type `kind` to the type `to`; rounds to even."""
    bits = np.ascontiguousarray(values).view(_BITS[kind])
    there = torch.from_numpy(bits.copy()).view(_TYPES[kind]).to(_TYPES[to])
    return there.view(getattr(torch, np.dtype(_BITS[to]).name)).numpy()


def apply() -> None:
    """Patches the interpreter in this process."""
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *arguments: Any) -> Any:
        return plain(self, _wide(a), _wide(b), *arguments)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert


def _wide(handle: Any) -> Any:
    kind = handle.dtype.scalar
    if kind not in (tl.bfloat16, tl.float8e4nv):
        return handle
    data = convert(handle.data, kind, tl.float32, None).view(np.float32)
    return interpreter.TensorHandle(data, tl.float32)
