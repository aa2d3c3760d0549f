"""CUDA graphs of decode steps, on a CPU: the capture recomputes on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.engine.engine import Engine
from inference.kv_cache.kv_cache import KVCache
from inference.model import loading
from inference.model.config import load_config
from inference.model.llama import Llama
from inference.model.loading import EngineOptions
from inference.runner.cuda_graphs.decode_buffers import DecodeBuffers, batch_sizes
from inference.runner.cuda_graphs.graphed_model import MAX_ROWS_EACH, GraphedModel
from inference.runner.invariance import Invariance
from inference.runner.step import Step
from tests.inference.model.test_parity import prompts, run
from tests.inference.steps import CPU, Span, fill_cache, load_llama, make_step

NUM_BLOCKS = 40
MAX_NUM_ROWS = 11
NONE = Invariance.NONE


class Recorded:
    """A capture with the rules of CUDA graphs: after recording, only tensor contents change."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        result = compute()
        self.sizes.append(len(result))

        def replay() -> Tensor:
            result.copy_(compute())
            return result

        return replay


@pytest.fixture
def model(family: str, model_folder: Callable[[str], Path]) -> Llama:
    """A family's model with torch operations."""
    return load_llama(model_folder(family))


def graphed(model: Llama, cache: KVCache, capture: Recorded | None = None) -> GraphedModel:
    """The model with captured decode steps."""
    return GraphedModel(
        model, cache, max_num_rows=MAX_NUM_ROWS, max_context=512, capture=capture or Recorded()
    )


def make_cache(model: Llama) -> KVCache:
    """A KV cache with the same random contents each time."""
    cache = KVCache(model.config, NUM_BLOCKS, 16, torch.float32, CPU)
    fill_cache(cache, model.config.num_layers)
    return cache


def stored(cache: KVCache) -> Tensor:
    """The contents of all blocks that sequences can have."""
    keys, values = cache.layer(0)
    end = cache.scrap_block * cache.block_size
    return torch.stack([keys[:end], values[:end]])


def check(
    model: Llama, captured: GraphedModel, step: Step, caches: tuple[KVCache, KVCache]
) -> None:
    """Check that the step is replayed, with the logits and cache contents of an eager step.

    `caches` are those of the eager and of the captured model.
    """
    num_before = captured.num_replayed_steps
    expected, got = model.compute(step, caches[0]), captured.compute(step, caches[1])
    assert expected is not None
    assert got is not None
    assert captured.num_replayed_steps == num_before + 1
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stored(caches[1]), stored(caches[0]), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_captured_step_equals_an_eager_one(model: Llama) -> None:
    """For each number of sequences, logits and cache contents are equal."""
    eager_cache, cache = make_cache(model), make_cache(model)
    captured = graphed(model, cache)
    # Long contexts first: their block tables stay in the buffers and must not be read.
    for size in (11, 1, 2, 3, 5, 8, 9):
        spans = [(40 // size + place, 1) for place in range(size)]
        step = make_step(spans, 16, NUM_BLOCKS, seed=size)
        check(model, captured, step, (eager_cache, cache))
    assert captured.num_replayed_steps == 7


@pytest.mark.parametrize("family", ["llama-tied-gqa"])
@torch.inference_mode()
def test_other_steps_run_eagerly(model: Llama) -> None:
    """Steps with too many rows, of one sequence or in total, or with another cache."""
    cache = make_cache(model)
    captured = graphed(model, cache)
    cases: list[tuple[list[Span], KVCache]] = [
        ([(0, MAX_NUM_ROWS + 1)], cache),
        ([(3, 1)] * (MAX_NUM_ROWS + 1), cache),
        ([(3, 1)], make_cache(model)),
    ]
    for spans, each in cases:
        step = make_step(spans, 16, NUM_BLOCKS)
        got = captured.compute(step, each)
        assert got is not None
        assert len(got) == len(step.token_ids)
    assert captured.num_replayed_steps == 0


@torch.inference_mode()
def test_steps_with_drafts_are_captured(model: Llama) -> None:
    """The rows of a sequence attend to each other as in an eager step."""
    eager_cache, cache = make_cache(model), make_cache(model)
    captured = graphed(model, cache)
    for number, outputs in enumerate(([0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 7])):
        step = make_step([(18, 1), (30, 3), (0, 4)], 16, NUM_BLOCKS, seed=number)
        check(model, captured, replace(step, outputs=outputs), (eager_cache, cache))
    assert captured.num_replayed_steps == 2


def test_long_chunks_are_not_captured(model_folder: Callable[[str], Path]) -> None:
    """Each of their rows would read all keys and values again."""
    model = load_llama(model_folder("llama-tied-gqa"))
    cache = make_cache(model)
    captured = GraphedModel(model, cache, max_num_rows=40, max_context=512, capture=Recorded())
    with torch.inference_mode():
        for num_rows in (MAX_ROWS_EACH, MAX_ROWS_EACH + 1):
            captured.compute(make_step([(3, num_rows), (5, 1)], 16, NUM_BLOCKS), cache)
    assert captured.num_replayed_steps == 1


@pytest.mark.parametrize("family", ["llama-tied-gqa"])
def test_graphs_are_captured_largest_first(model: Llama) -> None:
    """They share a memory pool, which the first graph sizes."""
    capture = Recorded()
    graphed(model, make_cache(model), capture)
    assert capture.sizes == [11, 8, 4, 2, 1]


@pytest.mark.parametrize("family", ["llama-tied-gqa"])
def test_steps_are_captured_on_a_gpu_with_suitable_kernels(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs have rows for every sequence, and for drafts up to a limit."""
    asked: list[int] = []
    monkeypatch.setattr(loading, "CudaCapture", Recorded)
    monkeypatch.setattr(loading, "GraphedModel", lambda *_, **o: asked.append(o["max_num_rows"]))
    options = replace(EngineOptions.defaults(Path(), "m"), max_num_seqs=64)
    assert loading._capture(options, model, 512, NONE) is None
    model.device = torch.device("cuda")
    assert loading._capture(options, model, 512, NONE) is None  # torch's operations
    monkeypatch.setattr(loading, "TorchOperations", type(None))  # as if the kernels were others
    assert loading._capture(replace(options, cuda_graphs=False), model, 512, NONE) is None
    for num_seqs, num_drafts in ((64, 0), (64, 2), (64, 8), (1000, 8)):
        each = replace(options, max_num_seqs=num_seqs, num_speculative_tokens=num_drafts)
        capture = loading._capture(each, model, 512, NONE)
        assert capture is not None
        capture(KVCache(model.config, 1, 16, torch.float32, CPU))
    assert asked == [64, 192, 512, 1000]


def test_batch_sizes() -> None:
    """Each number of rows has a captured size with fewer than 8, or a quarter, unused rows."""
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(30) == [1, 2, 4, 8, 16, 24, 30]
    for most in (*range(1, 70), 256, 300, 512, 1000):
        sizes = batch_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        for wanted in range(1, most + 1):
            spare = min(size for size in sizes if size >= wanted) - wanted
            assert spare < max(8, wanted / 4)


def test_unused_rows_touch_the_scrap_block_only(
    model_folder: Callable[[str], Path],
) -> None:
    """The block manager does not allocate that block, and its contents stay finite."""
    config = load_config(model_folder("llama-tied-gqa"))
    cache = KVCache(config, 4, 16, torch.float32, CPU)
    buffers = DecodeBuffers(cache, max_num_rows=4, max_context=64, device=CPU)
    buffers.fill(make_step([(20, 1)], 16, 4), 4)
    inputs = buffers.inputs(4)
    assert inputs.contexts.tolist() == [21, 1, 1, 1]
    assert inputs.slots[1:].tolist() == [64] * 3
    assert inputs.tables[1:, 0].tolist() == [4] * 3
    assert cache.layer(0)[0].shape[0] == 5 * 16
    buffers.fill(make_step([(3, 1)] * 3, 16, 4), 4)
    assert inputs.contexts.tolist() == [4, 4, 4, 1]


def test_an_engine_gives_the_same_tokens_with_graphs(make_engine: Callable[..., Engine]) -> None:
    """Greedy, with preemption; the accounting of the blocks is right at the end."""
    batch = prompts(30, 3, 17, 30)
    expected = run(make_engine(), batch, num_tokens=40)
    engine = make_engine(kv_cache_tokens=192)
    runner = engine.steps.runner
    captured = GraphedModel(
        runner._model,  # type: ignore[attr-defined]
        runner._cache,  # type: ignore[attr-defined]
        max_num_rows=64,
        max_context=512,
        capture=Recorded(),
    )
    runner._model = captured  # type: ignore[attr-defined]
    assert run(engine, batch, num_tokens=40) == expected
    assert captured.num_replayed_steps > 20
    assert engine.load().kv_usage == 0
