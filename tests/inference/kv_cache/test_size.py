"""The number of KV cache blocks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from inference.engine.errors import ModelLoadError
from inference.kv_cache import size
from inference.kv_cache.size import FREE_MEMORY_SHARE, num_kv_blocks
from inference.model.factory import Model

BYTES_PER_TOKEN = 2 * 2 * 2 * 8 * 4
CONFIG = SimpleNamespace(num_layers=2, num_kv_heads=2, head_dim=8)


@pytest.fixture
def model() -> Model:
    """A stub with the attributes that `num_kv_blocks` reads."""
    device = torch.device("cpu")
    return cast("Model", SimpleNamespace(config=CONFIG, dtype=torch.float32, device=device))


def blocks(model: Model, **options: Any) -> int:
    """The number of blocks of 16 tokens for three sequences of 40 tokens."""
    defaults = {"num_tokens": 0, "max_num_seqs": 3, "max_context": 40}
    return num_kv_blocks(
        model, block_size=16, max_num_batched_tokens=64, capture=None, **{**defaults, **options}
    )


def test_every_sequence_has_whole_blocks(model: Model) -> None:
    """40 tokens need three blocks, so a full engine needs no preemption."""
    assert blocks(model) == 9


def test_a_given_number_of_tokens_is_used(model: Model) -> None:
    """Rounded down to whole blocks, at least one."""
    assert blocks(model, num_tokens=50) == 3
    assert blocks(model, num_tokens=1) == 1


def test_memory_is_the_limit(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks fit in a share of the free memory; an error says if none does."""
    enough = int(5 * 16 * BYTES_PER_TOKEN / FREE_MEMORY_SHARE)
    monkeypatch.setattr(size, "free_memory", lambda: enough)
    assert blocks(model) == 5
    monkeypatch.setattr(size, "free_memory", lambda: enough // 6)
    with pytest.raises(ModelLoadError, match="no memory is left for the KV cache"):
        blocks(model)
