"""Compares the engine's logits and greedy tokens with transformers."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.inference.model.families import VOCAB_SIZE, reference_greedy, reference_logits
from tests.inference.model.native import KERNELS, use_kernels
from tests.inference.sampled import plan_of

NUM_INNER = 784
"""Inputs of the down projections of the model with large activations."""

GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(params=KERNELS, name="make_engine")
def make_engine_of_each(
    request: pytest.FixtureRequest,
    make_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Engine]:
    """Makes engines with torch's operations, then with each native variant."""
    kernels = use_kernels(request.param, monkeypatch)

    def make(*arguments: Any, **options: Any) -> Engine:
        return make_engine(*arguments, kernels=kernels, **options)

    return make


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]


def run(
    engine: Engine, batch: Iterable[list[int]], num_tokens: int = 24, **params: object
) -> list[list[int]]:
    """The completions of a batch of prompts that arrive together."""
    sequences = [
        Sequence(str(number), prompt, SamplingParams(max_tokens=num_tokens, **{**GREEDY, **params}))  # type: ignore[arg-type]
        for number, prompt in enumerate(batch)
    ]
    for sequence in sequences:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
    engine.check_when_idle()
    return [list(sequence.token_ids[sequence.num_prompt_tokens :]) for sequence in sequences]


def test_logits_equal_transformers(make_engine: Callable[..., Engine], family: str) -> None:
    """In float32 no logit of a prompt's last position differs by more than 1e-4."""
    engine = make_engine(family)
    for prompt in prompts(1, 2, 17, 50):
        sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
        assert engine._scheduler.block_manager.allocate(sequence)
        sequence.num_computed_tokens = 0
        logits = engine.steps.runner.logits(plan_of([sequence]))  # type: ignore[attr-defined]
        engine._scheduler.block_manager.free(sequence)
        difference = (logits[0] - reference_logits(family, prompt)[-1]).abs().max()
        assert difference <= 1e-4


def test_greedy_equals_transformers_alone_and_in_a_batch(
    make_engine: Callable[..., Engine], family: str
) -> None:
    """Token for token, for prompts of mixed lengths."""
    batch = prompts(1, 5, 16, 31, 47)
    expected = [reference_greedy(family, prompt, 24) for prompt in batch]
    alone = make_engine(family)
    assert [run(alone, [prompt])[0] for prompt in batch] == expected
    # A new engine: the first one has the prompts in its prefix cache.
    assert run(make_engine(family), batch) == expected


def test_chunked_prefill_changes_nothing(make_engine: Callable[..., Engine], family: str) -> None:
    """A prompt gives the same tokens with and without chunked prefill."""
    batch = prompts(40, 70, 9)
    whole = run(make_engine(family), batch)
    assert run(make_engine(family, max_num_batched_tokens=16, max_num_seqs=8), batch) == whole


def test_the_prefix_cache_changes_nothing(make_engine: Callable[..., Engine], family: str) -> None:
    """A prompt with a cached prefix gives the same tokens; only the rest is computed."""
    [prompt] = prompts(70)
    engine = make_engine(family)
    cold = run(engine, [prompt])
    sequence = Sequence("again", prompt, SamplingParams(max_tokens=24, **GREEDY))  # type: ignore[arg-type]
    engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert list(sequence.token_ids[70:]) == cold[0]
    assert sequence.num_cached_tokens == 64


def test_preemption_changes_nothing(make_engine: Callable[..., Engine]) -> None:
    """Preempted sequences are recomputed and give the same tokens."""
    batch = prompts(30, 30, 30, 30)
    roomy = run(make_engine(), batch, num_tokens=60)
    engine = make_engine(kv_cache_tokens=192)
    assert run(engine, batch, num_tokens=60) == roomy
    assert engine.load().num_preemptions > 0
    assert engine.load().kv_usage == 0


def test_a_resumed_sequence_continues_identically(make_engine: Callable[..., Engine]) -> None:
    """Greedy and seeded; another replica's tokens count as part of the completion."""
    [prompt] = prompts(20)
    for params in ({}, {"temperature": 1.0, "seed": 7}, {"frequency_penalty": 1.5}):
        whole = run(make_engine(), [prompt], **params)[0]
        sequence = Sequence(
            "resumed",
            prompt + whole[:10],
            SamplingParams(max_tokens=24, **{**GREEDY, **params}),  # type: ignore[arg-type]
            num_resumed_tokens=10,
        )
        engine = make_engine()
        engine.add(sequence)
        while engine.has_work:
            engine.step()
        assert list(sequence.token_ids[20:]) == whole
        assert sequence.finish is not None
        assert sequence.finish.num_completion_tokens == 24
        assert sequence.finish.num_prompt_tokens == 20


def test_a_seed_determines_the_tokens_in_any_batch(make_engine: Callable[..., Engine]) -> None:
    """A seeded sequence gets the same tokens alone and in a batch; another seed gives others."""
    first, *others = prompts(12, 30, 3, 18)
    sampled = {"temperature": 1.0, "top_p": 0.95}
    alone = run(make_engine(), [first], seed=1, **sampled)[0]
    assert run(make_engine(), [first, *others], seed=1, **sampled)[0] == alone
    assert run(make_engine(), [first], seed=2, **sampled)[0] != alone


@pytest.fixture(scope="module")
def outlier_folder(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model with one large value among the inputs of each down projection, as real ones have.

    Their number is no multiple of a block of int8 weights. The value itself is multiplied by zero,
    so it changes only what the others are rounded to.
    """
    folder = tmp_path_factory.mktemp("outliers")
    shutil.copytree(model_folder("llama-tied-gqa"), folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if ".mlp." in name:
            shape = [NUM_INNER if size == 96 else size for size in tensor.shape]
            weights[name] = torch.randn(shape, generator=generator) * tensor.std()
            if "up_proj" in name:
                weights[name][7] *= 300
            elif "down_proj" in name:
                weights[name][:, 7] = 0
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": NUM_INNER}))
    return folder


@pytest.mark.parametrize("kernels", KERNELS)
def test_int8_bears_large_activations(
    outlier_folder: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have a scale for each 32 inputs, so one large value does not coarsen all others."""
    [prompt] = prompts(40)
    logits = []
    for dtype, used in (("float32", "torch"), ("int8", use_kernels(kernels, monkeypatch))):
        options = EngineOptions.defaults(outlier_folder, "outliers")
        engine = load_engine(
            replace(options, device="cpu", dtype=dtype, kernels=used, kv_cache_tokens=512)
        )
        sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
        assert engine._scheduler.block_manager.allocate(sequence)
        logits.append(engine.steps.runner.logits(plan_of([sequence]))[0])  # type: ignore[attr-defined]
    assert torch.cosine_similarity(*logits, dim=0) > 0.99


@pytest.mark.parametrize(("dtype", "closeness"), [("bfloat16", 0.999), ("int8", 0.999)])
def test_narrow_weights_are_close(
    make_engine: Callable[..., Engine], family: str, dtype: str, closeness: float
) -> None:
    """Logits from narrower weights have a high cosine similarity to float32."""
    engine = make_engine(family, dtype=dtype)
    [prompt] = prompts(40)
    sequence = Sequence("s", prompt, SamplingParams(max_tokens=1, **GREEDY))  # type: ignore[arg-type]
    assert engine._scheduler.block_manager.allocate(sequence)
    logits = engine.steps.runner.logits(plan_of([sequence]))  # type: ignore[attr-defined]
    expected = reference_logits(family, prompt)[-1]
    assert torch.cosine_similarity(logits[0], expected, dim=0) > closeness
