"""The KV cache's share of a GPU's memory, after activations and graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.engine.errors import ModelLoadError
from inference.kv_cache import size
from inference.kv_cache.kv_cache import KVCache
from inference.model.llama import Llama
from inference.runner.profile_run import full_step, short_steps
from tests.inference.steps import load_llama

MIB = 2**20


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> Llama:
    """A small model on the CPU."""
    return load_llama(model_folder("llama-tied-gqa"))


def test_activations_and_graphs_reduce_the_share(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps run on the CPU; only the memory statistics are fake."""
    free = iter([800, 730, 1000])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free) * MIB, 2000 * MIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 150 * MIB)
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    caches: list[KVCache] = []
    steps = [*short_steps(512, 16), full_step(64, 512, 16)]
    left = size._free_on_gpu(model, steps, 16, caches.append)
    assert left == 900 * MIB - 50 * MIB - 70 * MIB
    assert len(caches) == 1


def test_steps_that_do_not_fit_name_the_setting(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the setting that makes the largest step smaller."""

    def too_large(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("80 GiB")

    monkeypatch.setattr(size, "_measure", too_large)
    with pytest.raises(ModelLoadError, match=r"INFERENCE_MAX_NUM_BATCHED_TOKENS is too large.*80"):
        size._free_on_gpu(model, [full_step(64, 512, 16)], 16, None)
