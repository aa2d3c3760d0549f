"""Fixtures of the GPU tests, which are skipped with a message without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference.engine.engine import Engine

NO_GPU = "NOTHING IS TESTED ON A GPU: no CUDA device is visible"


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """The GPU as a torch device; skips the test without one."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    torch.manual_seed(0)
    return torch.device("cuda")


@pytest.fixture
def make_gpu_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """Makes an engine of a family's model on the GPU, in bfloat16 with Triton's kernels."""

    def make(family: str = "llama-tied-gqa", **options: Any) -> Engine:
        defaults = {"device": "cuda", "dtype": "bfloat16", "kernels": "triton", "max_num_seqs": 16}
        return make_engine(family, **{**defaults, **options})

    return make
