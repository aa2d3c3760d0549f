"""Prompt lookup: drafts never change the tokens, and rejected drafts become fewer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Counter

from inference.api import metrics
from inference.engine.engine import Engine
from inference.model.loading import EngineOptions, load_engine
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.scheduler_output import ScheduledSequence
from inference.scheduler.sequence import Sequence
from inference.scheduler.speculation import LONGEST_MATCH, MAX_PAUSE, Drafter, accept, lookup
from inference.scheduler.step_result import SampledToken
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.logprobs import TokenLogprob
from tests.inference.model.families import VOCAB_SIZE
from tests.inference.spelling import EOS, save_spelling

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.05, "frequency_penalty": 0.1},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_p": 0.3, "min_p": 0.05},
    {"temperature": 0.5, "seed": 5, "top_k": 2, "num_logprobs": 2},
    {"temperature": 0.0, "min_tokens": 20, "stop_token_ids": frozenset(range(0, VOCAB_SIZE, 4))},
    {"temperature": 0.0, "stop_token_ids": frozenset(range(0, VOCAB_SIZE, 20))},
    {"temperature": 0.2, "seed": 6, "logit_bias": {3: 4.0, 9: 3.0}},
]


def random_sequences(seed: int, num_sequences: int = 12) -> list[Sequence]:
    """Prompts with repetitions, of mixed lengths, with mixed sampling parameters."""
    rng = random.Random(seed)
    sequences = []
    for number in range(num_sequences):
        phrase = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 12))]
        prompt = phrase * rng.randint(1, 6) + [rng.randrange(VOCAB_SIZE)]
        params = SamplingParams(max_tokens=rng.randint(20, 60), **rng.choice(PARAMS))
        sequences.append(Sequence(str(number), prompt, params))
    return sequences


def run(engine: Engine, sequences: list[Sequence]) -> list[list[TokenLogprob]]:
    """Add the sequences one per step and run them to their end; returns each one's logprobs."""
    logprobs: dict[str, list[TokenLogprob]] = {s.request_id: [] for s in sequences}
    waiting = list(sequences)
    while waiting or engine.has_work:
        if waiting:
            engine.add(waiting.pop(0))
        for output in engine.step():
            logprobs[output.request_id] += output.logprobs
    return list(logprobs.values())


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama-tied-gqa", {}),
        ("mistral-window", {"max_num_batched_tokens": 24, "max_num_seqs": 6}),
        ("qwen3", {"kv_cache_tokens": 192, "max_num_seqs": 4}),
    ],
)
def test_drafts_change_no_token(
    make_engine: Callable[..., Engine], family: str, options: dict[str, Any]
) -> None:
    """Greedy and seeded, with penalties, stop tokens, logprobs, chunked prefill and preemption."""
    plain, drafted = random_sequences(1), random_sequences(1)
    expected = run(make_engine(family, **options), plain)
    engine = make_engine(family, num_speculative_tokens=5, **options)
    logprobs = run(engine, drafted)
    assert [s.token_ids for s in drafted] == [s.token_ids for s in plain]
    num_drafted = sum(s.speculation.num_drafted for s in drafted)
    num_accepted = sum(s.speculation.num_accepted for s in drafted)
    assert 0 < num_accepted < num_drafted, "some drafts are accepted and some rejected"
    assert sum(s.num_steps for s in drafted) < sum(s.num_steps for s in plain)
    for some, others in zip(logprobs, expected, strict=True):
        assert [p.token_id for p in some] == [p.token_id for p in others]
        values = [p.logprob for p in others]
        assert [p.logprob for p in some] == pytest.approx(values, abs=1e-3)
    if "kv_cache_tokens" in options:
        assert engine.load().num_preemptions > 0
    assert engine.load().kv_usage == 0


def test_drafts_keep_to_a_constraint(tmp_path: Path) -> None:
    """Masks are computed for each position, and the tokens are the same with and without drafts."""
    save_spelling(tmp_path)
    constraint = OutputConstraint(ConstraintForm.REGEX, r"(ab|ba){4,9}(, ab){9}[0-9]{3,9}")
    answers = []
    for num_drafts in (0, 6):
        options = replace(
            EngineOptions.defaults(tmp_path, "s"),
            dtype="float32",
            kv_cache_tokens=4096,
            num_speculative_tokens=num_drafts,
            threads=torch.get_num_threads(),
        )
        engine = load_engine(options)
        sequences = [
            Sequence(
                str(n),
                [5, n],
                SamplingParams(max_tokens=90, seed=n, constraint=constraint),
                eos_token_ids=EOS,
            )
            for n in range(4)
        ]
        run(engine, sequences)
        answers.append([list(s.token_ids) for s in sequences])
    assert answers[0] == answers[1]
    assert all(s.speculation.num_accepted for s in sequences)
    assert all(s.token_ids[-1] in EOS for s in sequences)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_lookup_equals_a_plain_search(ids: list[int], most: int) -> None:
    """The longest suffix that occurred before, at its latest position."""
    expected: list[int] = []
    for length in range(LONGEST_MATCH, 0, -1):
        ends = [e for e in range(length, len(ids)) if ids[e - length : e] == ids[-length:]]
        if ends and len(ids) > length:
            expected = (ids[ends[-1] :] * most)[:most]
            break
    assert lookup(ids, most) == expected


def test_accept_keeps_tokens_up_to_the_first_rejected_draft() -> None:
    """The token sampled in place of a rejected draft is kept; empty if none could be sampled."""
    sequences = [Sequence(str(n), [1], SamplingParams(max_tokens=9)) for n in range(4)]
    drafts: list[list[int]] = [[5, 6, 7], [5, 6], [], [5]]
    sampled = [5, 6, 8, 9, 5, 6, 7, 3, -1, 5]
    sampling = [
        ScheduledSequence(sequence, 1 + len(ids), True, ids)
        for sequence, ids in zip(sequences, drafts, strict=True)
    ]
    accepted = accept(sampling, [SampledToken(token_id) for token_id in sampled])
    assert [[t.token_id for t in tokens] for tokens in accepted] == [[5, 6, 8], [5, 6, 7], [3], []]


def test_the_number_of_drafts_adapts() -> None:
    """Rejections in a row cause longer and longer pauses; acceptance doubles up to the maximum."""
    drafter = Drafter(8)
    sequence = Sequence("s", [1, 2, 3] * 9, SamplingParams(max_tokens=500))
    assert len(drafter.draft(sequence, 99)) == 8
    pauses = []
    for _ in range(9):
        drafter.learn(sequence, 1, 0)
        pauses.append(0)
        while not drafter.draft(sequence, 99):
            pauses[-1] += 1
    assert pauses[:4] == [0, 1, 3, 7]
    assert pauses[-1] == MAX_PAUSE
    lengths = []
    for _ in range(5):
        drafts = drafter.draft(sequence, 99)
        lengths.append(len(drafts))
        drafter.learn(sequence, len(drafts), len(drafts))
    assert lengths == [1, 2, 4, 8, 8]
    drafter.learn(sequence, 8, 2)
    assert len(drafter.draft(sequence, 99)) == 3
    assert drafter.draft(sequence, 2) == [1, 2], "at most the given number"


def test_the_last_token_is_not_drafted() -> None:
    """At most as many drafts as the sequence has tokens left, minus the one that is sampled."""
    sequence = Sequence("s", [1, 2, 3] * 9, SamplingParams(max_tokens=3))
    assert len(Drafter(8).draft(sequence, 99)) == 2


def test_draft_tokens_are_in_the_metrics(make_engine: Callable[..., Engine]) -> None:
    """Proposed and accepted drafts are in the finish and in the counters."""
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    sequence = Sequence("s", [1, 2, 3] * 5, params)
    run(make_engine(num_speculative_tokens=4), [sequence])
    finish = sequence.finish
    assert finish is not None
    assert finish.num_drafted_tokens >= finish.num_accepted_tokens > 0
    counters = (metrics.DRAFT_TOKENS, metrics.ACCEPTED_TOKENS)
    before = [total(counter) for counter in counters]
    metrics.observe_finish(finish)
    grown = [total(counter) - old for counter, old in zip(counters, before, strict=True)]
    assert grown == [finish.num_drafted_tokens, finish.num_accepted_tokens]


def total(counter: Counter) -> float:
    """The counter's sum over all labels."""
    samples = [sample for metric in counter.collect() for sample in metric.samples]
    return sum(sample.value for sample in samples if sample.name.endswith("_total"))
