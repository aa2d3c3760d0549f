"""Draws tokens in C beside the native decoder, as inference/sampling/torch_sampler.py does in
torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inference.model.native import library
from inference.model.native.pool import ThreadPool
from inference.scheduler.scheduler_output import Row
from inference.structured_output.masks import Masks

_MASK_64 = 2**64 - 1

_PARAMS = np.dtype(
    [
        ("seed", np.uint64),
        ("position", np.uint64),
        ("mask", np.uint64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("top_k", np.int32),
    ]
)
"""`Params` of draw.h."""


class NativeDrawer:
    """Draws the rows of a step side by side, on the decoder's threads where they are free."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._draw = library.load().weir_draw
        self._draw.restype = None

    def draw(self, logits: Tensor, rows: Rows[Row], masks: Masks | None) -> NDArray[np.int32]:
        """As `inference.sampling.sampler.Drawer` has it; `logits` must be on the CPU, each row in
        one.
        """
        assert logits.stride(1) == 1, "the values of a row must stand side by side"
        num_rows, vocab_size = logits.shape
        params = np.array([_params(row, vocab_size) for row in rows], dtype=_PARAMS)
        if masks is not None:
            words = masks.words
            places = words.ctypes.data + np.arange(len(words)) * words.strides[0]
            params["mask"][masks.rows] = places
        token_ids = np.empty(num_rows, dtype=np.int32)
        # While an embedding has the threads, which can take seconds, this one draws alone.
        with self._pool.if_free() as pool:
            self._draw(
                pool,
                ctypes.c_void_p(logits.data_ptr()),
                ctypes.c_int64(logits.stride(0)),
                ctypes.c_int32(vocab_size),
                ctypes.c_int32(num_rows),
                ctypes.c_void_p(params.ctypes.data),
                ctypes.c_void_p(token_ids.ctypes.data),
            )
        return token_ids


def _params(row: Row, vocab_size: int) -> tuple[float, ...]:
    """In the order of `_PARAMS`."""
    params = row.sequence.params
    return (
        row.sequence.seed & _MASK_64,
        row.position,
        0,
        0.0 if params.is_greedy else params.temperature,
        params.top_p,
        params.min_p,
        min(params.top_k, vocab_size),
    )
