"""Sequences with a common prefix that arrive together: the prefix is computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.engine import Engine
from inference.engine.errors import StepFailed
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import IntegrityError
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.sequence import Sequence
from inference.scheduler.speculation import accept
from inference.scheduler.step_result import SampledToken
from tests.inference.scheduler.test_scheduler import make_scheduler
from tests.inference.stub_runner import make_sequence

BLOCK_SIZE = 4


def run(scheduler: Scheduler, max_steps: int = 10_000) -> dict[str, int]:
    """Run all sequences to their end; returns the number of prompt tokens computed for each."""
    computed: dict[str, int] = {}
    for _ in range(max_steps):
        if not scheduler.has_work:
            break
        batch = scheduler.schedule(0.0)
        assert batch.sequences
        for sequence, num_tokens, *_ in batch.scheduled:
            of_prompt = sequence.num_prompt_tokens - sequence.num_computed_tokens
            tokens = min(num_tokens, max(of_prompt, 0))
            computed[sequence.request_id] = computed.get(sequence.request_id, 0) + tokens
        tokens_of = accept(batch.sampling, [SampledToken(1) for _ in batch.sampling])
        scheduler.finish(batch, tokens_of, 0.0)
        scheduler.check_integrity()
    return computed


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 90),
    copies=st.integers(2, 6),
    budget=st.integers(8, 64),
    others=st.lists(st.integers(1, 30), max_size=3),
)
def test_copies_of_a_prompt_compute_its_blocks_once(
    length: int, copies: int, budget: int, others: list[int]
) -> None:
    """All sequences after the first compute only the tokens outside full blocks."""
    scheduler = make_scheduler(num_blocks=400, max_num_seqs=8, budget=budget)
    for number, size in enumerate(others):
        scheduler.add(make_sequence(f"other {number}", [60 + number] * size))
    for number in range(copies):
        scheduler.add(make_sequence(str(number), list(range(length))))
    computed = run(scheduler)
    assert computed["0"] == length
    for number in range(1, copies):
        # For a prompt of less than two blocks, less than half may be shared: it does not wait.
        most = BLOCK_SIZE if length > 2 * BLOCK_SIZE else length
        assert computed[str(number)] <= most


def test_waiting_copies_proceed_when_the_first_is_lost() -> None:
    """After an abort, failure or preemption of the first, the next one computes the prefix."""
    for loss in ("abort", "fail"):
        scheduler = make_scheduler(num_blocks=64, budget=16)
        first, second = (make_sequence(name, list(range(60))) for name in "ab")
        scheduler.add(first)
        scheduler.add(second)
        batch = scheduler.schedule(0.0)
        assert batch.sequences == [first]
        if loss == "abort":
            scheduler.abort("a", 0.0)
        else:
            scheduler.fail([first], StepFailed("broken"), 0.0)
        scheduler.check_integrity()
        assert run(scheduler)["b"] == 60


def test_a_sequence_that_shares_less_than_half_does_not_wait() -> None:
    """A common prefix of one block does not delay a sequence with much else to compute."""
    scheduler = make_scheduler(num_blocks=64, budget=64)
    beginning = [9] * BLOCK_SIZE
    first, second = (
        make_sequence(name, beginning + [number] * 20) for number, name in enumerate("ab")
    )
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.schedule(0.0).sequences == [first, second]


def test_check_integrity_covers_announced_blocks() -> None:
    """An announced block that no sequence computes would delay a sequence for ever."""
    scheduler = make_scheduler(num_blocks=64)
    sequence = make_sequence("a", list(range(20)))
    scheduler.add(sequence)
    scheduler.schedule(0.0)
    scheduler.check_integrity()
    sequence.num_announced_blocks = 0
    with pytest.raises(IntegrityError, match="announced"):
        scheduler.check_integrity()


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 32, "max_num_seqs": 8}])
def test_sequences_sharing_a_prompt_sample_as_each_does_alone(
    make_engine: Callable[..., Engine], options: dict[str, Any]
) -> None:
    """Four seeds on one prompt, sharing its blocks, give the tokens that each gives alone."""
    prompt = [number % 150 for number in range(100)]

    def choices() -> list[Sequence]:
        return [
            Sequence(str(n), prompt, SamplingParams(max_tokens=12, seed=n, ignore_eos=True))
            for n in range(4)
        ]

    together, alone = choices(), choices()
    engine = make_engine(**options)
    for sequence in together:
        engine.add(sequence)
    while engine.has_work:
        engine.step()
    assert [s.num_cached_tokens for s in together] == [0, 96, 96, 96]
    for sequence in alone:
        engine = make_engine(**options)
        engine.add(sequence)
        while engine.has_work:
            engine.step()
    assert [s.token_ids for s in together] == [s.token_ids for s in alone]
