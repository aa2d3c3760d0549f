"""Whole models in Triton's interpreter; run by tests/inference/model/test_kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inference.engine.engine import Engine
from inference.kv_cache.kv_cache import KVCache
from inference.model.kernels.triton_operations import TritonOperations
from inference.runner.cuda_graphs.graphed_model import GraphedModel
from tests.inference.model.families import reference_greedy
from tests.inference.model.test_parity import prompts, run
from tests.inference.steps import CPU, fill_cache, load_llama, make_step


@pytest.mark.parametrize("family", ["mistral-window", "qwen3"])
def test_greedy_equals_transformers(make_engine: Callable[..., Engine], family: str) -> None:
    """The tokens are equal, in a batch of prompts with chunked prefill."""
    engine = make_engine(family, kernels="triton", max_num_batched_tokens=20, max_num_seqs=3)
    model = engine.steps.runner._model  # type: ignore[attr-defined]
    assert isinstance(model.operations, TritonOperations)
    batch = prompts(1, 26)
    assert run(engine, batch, 3) == [reference_greedy(family, prompt, 3) for prompt in batch]


def test_sampled_tokens_equal_torch(make_engine: Callable[..., Engine]) -> None:
    """The same seed gives the same tokens, with and without filters."""
    batch = prompts(6, 4)
    for params in ({"top_p": 0.9}, {}):
        sampled = {"temperature": 1.0, "seed": 3, **params}
        expected = run(make_engine(), batch, 2, **sampled)
        assert run(make_engine(kernels="triton"), batch, 2, **sampled) == expected


@torch.inference_mode()
def test_a_captured_launch_fits_every_step(model_folder: Callable[[str], Path]) -> None:
    """Launches for the longest context serve short ones, draft tokens and padding."""
    model = load_llama(model_folder("llama-tied-gqa"), make_operations=TritonOperations)
    cache = KVCache(model.config, 40, 16, torch.float32, CPU)
    captured = GraphedModel(
        model, cache, max_num_rows=5, max_context=512, capture=lambda compute: compute
    )
    for spans in ([(300, 1)], [(3, 1), (70, 2)], [(0, 1)]):
        fill_cache(cache, model.config.num_layers)
        step = make_step(spans, 16, 40)
        expected, got = model.compute(step, cache), captured.compute(step, cache)
        assert expected is not None
        assert got is not None
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert captured.num_replayed_steps == 3
