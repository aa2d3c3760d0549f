"""Splits the blocks of GGUF tensors into codes, scales and minimums, without loss.

The layouts are those of ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from inference.model.layers.grouped import Bits, GroupedWeight, NestedScales

_Bytes = NDArray[np.uint8]
_Nested = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
_Parts = tuple[_Bytes, NDArray[Any], NDArray[Any] | None, _Nested | None]
"""Of each block of bytes: its codes, the scales and minimums of its groups of 32, and their parts
(`NestedScales`)."""

_IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.int16
)
"""The values of IQ4_NL's codes."""


def _half(blocks: _Bytes, at: int) -> NDArray[np.float32]:
    """[num_blocks, 1]"""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: _Bytes) -> _Bytes:
    """Lower four bits of all bytes, then upper ones."""
    return np.concatenate((packed & np.uint8(15), packed >> np.uint8(4)), axis=-1)


def _fifth_bits(packed: _Bytes) -> _Bytes:
    """Bits of 32-bit words as the fifth bits of codes, [num_blocks, 32]."""
    return np.unpackbits(packed, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: _Bytes) -> _Parts:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None, None


def _q4_1(blocks: _Bytes) -> _Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2), None


def _q5_0(blocks: _Bytes) -> _Parts:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return codes + np.uint8(128 - 16), _half(blocks, 0), None, None


def _q5_1(blocks: _Bytes) -> _Parts:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return codes, _half(blocks, 0), _half(blocks, 2), None


def _q8_0(blocks: _Bytes) -> _Parts:
    return blocks[:, 2:] ^ np.uint8(128), _half(blocks, 0), None, None


def _iq4_nl(blocks: _Bytes) -> _Parts:
    values = _IQ4_NL[_nibbles(blocks[:, 2:])]
    return (values + 128).astype(np.uint8), _half(blocks, 0), None, None


def _k_scales(blocks: _Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32], _Nested]:
    """Scales and minimums of the eight groups of Q4_K and Q5_K, [num_blocks, 8]."""
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), axis=1)
    minimums = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), axis=1)
    scale, minimum = _half(blocks, 0), -_half(blocks, 2)
    return scales * scale, minimums * minimum, (scale, minimum, scales, minimums)


def _q4_k(blocks: _Bytes) -> _Parts:
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 256)
    return codes, *_k_scales(blocks)


def _q5_k(blocks: _Bytes) -> _Parts:
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    numbers = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (blocks[:, 16:48].reshape(-1, 1, 32) >> numbers) & np.uint8(1)
    return (codes | (fifth << np.uint8(4))).reshape(-1, 256), *_k_scales(blocks)


_Kind = GGMLQuantizationType
_FORMATS: Mapping[_Kind, tuple[Bits, Callable[[_Bytes], _Parts]]] = {
    _Kind.Q4_0: (4, _q4_0),
    _Kind.Q4_1: (4, _q4_1),
    _Kind.Q4_K: (4, _q4_k),
    _Kind.Q5_0: (8, _q5_0),
    _Kind.Q5_1: (8, _q5_1),
    _Kind.Q5_K: (8, _q5_k),
    _Kind.Q8_0: (8, _q8_0),
    _Kind.IQ4_NL: (8, _iq4_nl),
}


def bits_of(kind: GGMLQuantizationType) -> Bits | None:
    """Bits of the codes of this type; 8 of other quantised types, which are quantised again."""
    if kind in _FORMATS:
        return _FORMATS[kind][0]
    return 8 if GGML_QUANT_SIZES[kind][0] > 1 else None


def grouped(rows: _Bytes, kind: GGMLQuantizationType) -> GroupedWeight | None:
    """The weights of rows of bytes [num_outputs, num_bytes]; None of a type without such groups."""
    if kind not in _FORMATS:
        return None
    bits, split = _FORMATS[kind]
    codes, scales, minimums, nested = split(rows.reshape(-1, GGML_QUANT_SIZES[kind][1]))

    def values(each: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(each).reshape(len(rows), -1))

    return GroupedWeight(
        codes=values(codes),
        bits=bits,
        scales=values(scales),
        minimums=None if minimums is None else values(minimums),
        nested=None if nested is None else NestedScales(*map(values, nested)),
    )
