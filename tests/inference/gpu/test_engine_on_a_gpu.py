"""The engine on a GPU: accuracy, CUDA graphs, and one synchronisation per step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from inference.engine.engine import Engine
from inference.engine.errors import ModelLoadError
from inference.kv_cache.kv_cache import KVCache
from inference.model.factory import FP8_CAPABILITY
from inference.runner.cuda_graphs.graphed_model import GraphedModel
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.embedding.test_embedding import embed, reference_embedding
from tests.inference.model.families import bfloat16_logits, reference_logits
from tests.inference.model.test_parity import GREEDY, prompts, run
from tests.inference.sampled import plan_of
from tests.inference.steps import make_step

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MakeEngine = Callable[..., Engine]


def logits_of(engine: Engine, prompt: list[int]) -> torch.Tensor:
    """The logits [vocab_size] after a prompt, on the CPU."""
    sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
    assert engine._scheduler.block_manager.allocate(sequence)
    logits: torch.Tensor = engine.steps.runner.logits(plan_of([sequence]))  # type: ignore[attr-defined]
    engine._scheduler.block_manager.free(sequence, forget=True)
    return logits[0].cpu()


def test_logits_are_close_to_transformers(make_gpu_engine: MakeEngine, family: str) -> None:
    """The logits are about as close to float32 as transformers' own bfloat16."""
    engine = make_gpu_engine(family)
    for prompt in prompts(1, 17, 50):
        expected = reference_logits(family, prompt)[-1]
        its_own = torch.cosine_similarity(bfloat16_logits(family, prompt)[-1], expected, dim=0)
        ours = torch.cosine_similarity(logits_of(engine, prompt), expected, dim=0)
        assert ours >= min(float(its_own), 0.9995) - 0.001


def test_greedy_tokens_are_mostly_transformers(make_gpu_engine: MakeEngine, family: str) -> None:
    """Each token is the most likely one in float32, within rounding."""
    engine = make_gpu_engine(family)
    batch = prompts(5, 31, 47)
    for prompt, completion in zip(batch, run(engine, batch, 24), strict=True):
        logits = reference_logits(family, prompt + completion)[len(prompt) - 1 : -1]
        margin = logits.max(dim=-1).values - logits.gather(
            1, torch.tensor(completion).unsqueeze(1)
        ).squeeze(1)
        # Two rounding steps of bfloat16 at the logits' magnitude.
        assert (margin <= logits.abs().amax(dim=-1) / 64).all()


def test_captured_steps_equal_eager_ones(make_gpu_engine: MakeEngine, family: str) -> None:
    """For several batch sizes, with and without draft tokens."""
    engine = make_gpu_engine(family, num_speculative_tokens=3)
    model = engine.steps.runner._model  # type: ignore[attr-defined]
    cache: KVCache = engine.steps.runner._cache  # type: ignore[attr-defined]
    assert isinstance(model, GraphedModel)
    with torch.inference_mode():
        for size in (1, 2, 3, 7, 16):
            for spans in ([(40 + n, 1) for n in range(size)], [(30, 1)] * (size - 1) + [(9, 4)]):
                for kind in (False, True):
                    step = replace(make_step(spans, 16, 100, seed=size), is_invariant=kind)
                    before = model.num_replayed_steps
                    got, expected = model.compute(step, cache), model.model.compute(step, cache)
                    assert model.num_replayed_steps == before + 1
                    assert got is not None
                    assert expected is not None
                    # Different splits of the keys round differently, except with batch invariance.
                    tolerances = (0.0, 0.0) if kind else (2e-2, 5e-2)
                    torch.testing.assert_close(
                        got, expected, rtol=tolerances[0], atol=tolerances[1]
                    )


def test_preempted_and_cached_sequences_end(make_gpu_engine: MakeEngine) -> None:
    """The cache is too small for all sequences; every block is free at the end."""
    engine = make_gpu_engine(kv_cache_tokens=192)
    batch = prompts(30, 30, 30, 30)
    assert [len(tokens) for tokens in run(engine, batch, num_tokens=60)] == [60] * 4
    assert engine.load().num_preemptions > 0
    assert engine.load().kv_usage == 0


@contextmanager
def counted_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Records where the host synchronises with the device or waits for an event."""
    waits: list[str] = []
    synchronize = torch.cuda.Event.synchronize

    def counted(event: torch.cuda.Event) -> None:
        waits.append("for an event")
        synchronize(event)

    monkeypatch.setattr(torch.cuda.Event, "synchronize", counted)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield waits
        waits += [
            f"{each.filename}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)
        ]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        monkeypatch.undo()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0, "seed": 1, "top_p": 0.9}, {"frequency_penalty": 1.0}]
)
def test_a_step_waits_once(
    make_gpu_engine: MakeEngine,
    graphs: bool,
    params: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host waits for a step's tokens, but not for the steps launched after it."""
    engine = make_gpu_engine(cuda_graphs=graphs)
    for number, prompt in enumerate(prompts(20, 40, 5)):
        engine.add(
            Sequence(str(number), prompt, SamplingParams(max_tokens=40, **{**GREEDY, **params}))  # type: ignore[arg-type]
        )
    for _ in range(4):
        engine.step()
    for _ in range(5):
        with counted_waits(monkeypatch) as waits:
            engine.step()
        assert waits == ["for an event"]


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 1, "top_p": 0.9}])
@pytest.mark.parametrize("graphs", [True, False])
def test_async_scheduling_changes_nothing(
    make_gpu_engine: MakeEngine, params: dict[str, float], graphs: bool
) -> None:
    """The tokens are the same, with sequences that end at different times."""
    batch = prompts(20, 40, 5)
    found = []
    for supports_async_scheduling in (True, False):
        engine = make_gpu_engine(cuda_graphs=graphs)
        runner = engine.steps.runner
        assert runner.supports_async_scheduling
        runner.supports_async_scheduling = supports_async_scheduling
        sequences = [
            Sequence(str(n), prompt, SamplingParams(max_tokens=20 + 7 * n, **{**GREEDY, **params}))  # type: ignore[arg-type]
            for n, prompt in enumerate(batch)
        ]
        for sequence in sequences:
            engine.add(sequence)
        while engine.has_work:
            engine.step()
        found.append([list(sequence.token_ids) for sequence in sequences])
    assert found[0] == found[1]


def test_embeddings_are_close_to_transformers(make_gpu_engine: MakeEngine, family: str) -> None:
    """The kernels compute them in the engine's cache, the longest input in two pieces."""
    inputs = prompts(1, 17, 50)
    engine = make_gpu_engine(family)
    for vector, token_ids in zip(embed(engine, inputs), inputs, strict=True):
        expected = reference_embedding(family, token_ids)
        assert torch.cosine_similarity(torch.tensor(vector), expected, dim=0) > 0.999


def test_the_cache_leaves_memory_for_steps(make_gpu_engine: MakeEngine) -> None:
    """The largest step runs after the cache is allocated."""
    engine = make_gpu_engine(kv_cache_tokens=0, max_num_seqs=64)
    free, total = torch.cuda.mem_get_info()
    assert engine.load().kv_capacity_tokens == 64 * 512  # the context of every sequence
    assert free < total
    run(engine, prompts(*[500] * 8), num_tokens=4, num_prompt_logprobs=5)


def test_fp8_is_close(make_gpu_engine: MakeEngine, family: str) -> None:
    """GPUs without fp8 reject it."""
    if torch.cuda.get_device_capability() < FP8_CAPABILITY:
        with pytest.raises(ModelLoadError, match=r"8\.9"):
            make_gpu_engine(family, dtype="fp8")
        return
    engine = make_gpu_engine(family, dtype="fp8")
    [prompt] = prompts(40)
    expected = reference_logits(family, prompt)[-1]
    assert torch.cosine_similarity(logits_of(engine, prompt), expected, dim=0) > 0.98
    run(engine, [prompt], 8)


def test_int8_is_rejected(make_gpu_engine: MakeEngine) -> None:
    """The message recommends fp8."""
    with pytest.raises(ModelLoadError, match="INFERENCE_DTYPE=fp8"):
        make_gpu_engine(dtype="int8")
