"""Batch invariance: the steps whose tokens do not depend on the rest of the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inference.kv_cache.kv_cache import KVCache
from inference.model import loading
from inference.model.llama import Llama
from inference.runner.cuda_graphs.graphed_model import GraphedModel
from inference.runner.invariance import Invariance
from inference.runner.model_runner import ModelRunner
from inference.runner.step import Step
from inference.sampling.torch_sampler import TorchSampler
from inference.scheduler.block_manager import BlockManager
from inference.structured_output.masks import MaskWorker
from tests.inference.sampled import plan_of
from tests.inference.steps import CPU, load_llama, make_step
from tests.inference.stub_runner import make_sequence

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("invariance", "seeds", "expected"),
    [
        (Invariance.SEEDED, (None, None), False),
        (Invariance.SEEDED, (None, 0), True),
        (Invariance.ALL, (None,), True),
        (Invariance.NONE, (1,), False),
    ],
)
def test_a_step_is_invariant_if_a_sequence_requires_it(
    invariance: Invariance, seeds: tuple[int | None, ...], expected: bool
) -> None:
    """One seeded sequence is enough, and 0 is a seed."""
    recorded: list[bool] = []

    class Model:
        """Records `is_invariant` of each step."""

        def compute(self, step: Step, cache: KVCache) -> Tensor:
            recorded.append(step.is_invariant)
            return torch.zeros(len(step.outputs), 20)

    runner = ModelRunner(
        Model(),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        MaskWorker(20),
        TorchSampler(),
        invariance=invariance,
    )
    sequences = [make_sequence(str(n), PROMPT, seed=seed) for n, seed in enumerate(seeds)]
    for sequence in sequences:
        sequence.block_table.append(0)
    plan = plan_of(sequences)
    previous = runner.launch(plan)
    assert previous.result().tokens
    following = replace(plan, previous_indices=range(len(sequences)))
    assert runner.launch(following, previous)
    assert recorded == [expected] * 2
    assert expected in invariance.kinds


@pytest.mark.parametrize("separates", [True, False])
def test_seeded_sequences_have_separate_cached_blocks(separates: bool) -> None:
    """Blocks of other sequences may be computed with other kernels."""
    manager = BlockManager(16, 4, separates_seeded=separates)
    hits = []
    for seed in (None, 1, 2, None):
        sequence = make_sequence(f"seed {seed}", PROMPT, seed=seed)
        assert manager.allocate(sequence)
        hits.append(sequence.num_computed_tokens)
        sequence.num_computed_tokens = len(PROMPT)
        manager.commit(sequence)
        manager.free(sequence)
        manager.check_integrity([])
    assert hits == ([0, 0, 8, 8] if separates else [0, 8, 8, 8])


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> Llama:
    """A model whose invariant operations negate products, so that tests can see them."""
    made = load_llama(model_folder("llama-tied-gqa"))

    class Negating(type(made.operations)):  # type: ignore[misc]
        """Operations whose products are negated."""

        def multiply(self, x: Tensor, matrix: object) -> Tensor:
            product: Tensor = -super().multiply(x, matrix)
            return product

    made.batch_invariant_operations = Negating(made.config, made.operations.rotary)  # type: ignore[attr-defined]
    return made


@torch.inference_mode()
def test_each_kind_of_step_is_captured(model: Llama) -> None:
    """Invariant and usual steps replay their own graph."""
    cache = KVCache(model.config, 8, 16, torch.float32, CPU)
    captured = GraphedModel(
        model,
        cache,
        max_num_rows=4,
        max_context=64,
        capture=lambda compute: compute,
        kinds=Invariance.SEEDED.kinds,
    )
    found = {}
    for is_invariant in (False, True):
        step = replace(make_step([(0, 1), (0, 1)], 16, 8), is_invariant=is_invariant)
        expected, got = model.compute(step, cache), captured.compute(step, cache)
        assert expected is not None
        assert got is not None
        torch.testing.assert_close(got, expected)
        found[is_invariant] = got
    assert captured.num_replayed_steps == 2
    assert not torch.allclose(found[False], found[True])


def test_invariance_is_off_without_invariant_kernels(
    model: Llama, model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """On a GPU, a warning is logged; on a CPU nothing is lost."""
    assert loading._invariance(Invariance.SEEDED, model) is Invariance.SEEDED
    assert loading._invariance(Invariance.ALL, model) is Invariance.ALL
    plain = load_llama(model_folder("llama-tied-gqa"))
    with caplog.at_level(logging.WARNING):
        assert loading._invariance(Invariance.SEEDED, plain) is Invariance.NONE
        assert not caplog.messages
        plain.device = torch.device("cuda")
        assert loading._invariance(Invariance.NONE, plain) is Invariance.NONE
        assert not caplog.messages
        assert loading._invariance(Invariance.ALL, plain) is Invariance.NONE
    assert caplog.messages == ["batch invariance is disabled: it needs the Triton kernels"]
