"""The sampler in C for the native decoder; the same algorithm as `sampling/torch_sampler.py`."""

from __future__ import annotations

import ctypes
from collections import abc

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
"""`Params` of sample.h."""


class NativeSampler:
    """Samples the rows of a step in parallel, on the decoder's threads if they are idle."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._sample = library.load().weir_sample
        self._sample.restype = None

    def sample(
        self, logits: Tensor, rows: abc.Sequence[Row], masks: Masks | None
    ) -> NDArray[np.int32]:
        """Implements `inference.sampling.sampler.Sampler`.

        `logits` must be on the CPU, each row contiguous.
        """
        assert logits.stride(1) == 1, "each row of the logits must be contiguous"
        num_rows, vocab_size = logits.shape
        params = np.array([_params(row, vocab_size) for row in rows], dtype=_PARAMS)
        if masks is not None:
            bitmasks = masks.bitmasks
            addresses = bitmasks.ctypes.data + np.arange(len(bitmasks)) * bitmasks.strides[0]
            params["mask"][masks.rows] = addresses
        token_ids = np.empty(num_rows, dtype=np.int32)
        # If another thread computes on the pool, this one samples without it.
        with self._pool.if_free() as pool:
            self._sample(
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
    """The fields of `_PARAMS`, in order."""
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
