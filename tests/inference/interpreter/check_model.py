"""Whole models in Triton's interpreter; run by tests/inference/test_kernels.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inference.engine import Engine
from inference.kernels.operations import TritonOperations
from tests.inference.families import reference_greedy
from tests.inference.test_parity import prompts, run


@pytest.mark.parametrize("family", ["mistral-window", "qwen3"])
def test_greedy_equals_transformers(make_engine: Callable[..., Engine], family: str) -> None:
    """Token for token, in a batch of prompts that are cut into pieces."""
    engine = make_engine(family, kernels="triton", max_num_batched_tokens=20, max_num_seqs=3)
    model = engine._runner._model  # type: ignore[attr-defined]
    assert isinstance(model.operations, TritonOperations)
    batch = prompts(1, 26)
    assert run(engine, batch, 3) == [reference_greedy(family, prompt, 3) for prompt in batch]


def test_sampled_tokens_are_those_of_torch(make_engine: Callable[..., Engine]) -> None:
    """The same seed gives the same tokens, with filters and without."""
    batch = prompts(6, 4)
    for params in ({"top_p": 0.9}, {}):
        sampled = {"temperature": 1.0, "seed": 3, **params}
        expected = run(make_engine(), batch, 2, **sampled)
        assert run(make_engine(kernels="triton"), batch, 2, **sampled) == expected
