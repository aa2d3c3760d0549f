"""`sample_tokens` with each sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from inference.sampling.sampler import Sampler, sample_tokens
from tests.inference.sampled import VOCAB_SIZE, make_logits, make_sequence, rows_of


def test_a_seeded_row_is_the_same_alone_and_in_any_batch(sampler: Sampler) -> None:
    """Other rows' filters and penalties do not change its token."""
    logits = make_logits()
    mixed: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"seed": 7, "top_k": 3},
        {"seed": 7, "top_p": 0.8, "temperature": 1.5},
        {"seed": 7},
        {"min_p": 0.3, "frequency_penalty": 1.0},
    ]
    for params in mixed[1:4]:
        [alone] = sample_tokens(
            torch.tensor([logits]), rows_of([make_sequence(**params)]), sampler
        ).result()
        for order in (mixed, mixed[::-1]):
            rows = torch.tensor([make_logits(9) if p is not params else logits for p in order])
            batch = sample_tokens(
                rows, rows_of([make_sequence(**p) for p in order]), sampler
            ).result()
            assert batch[order.index(params)] == alone


def test_logprobs_are_of_the_raw_distribution(sampler: Sampler) -> None:
    """Those of the sampled and top tokens, before bias and temperature, if requested."""
    logits = make_logits()
    raw = torch.log_softmax(torch.tensor(logits), dim=-1).tolist()
    ranked = sorted(range(VOCAB_SIZE), key=lambda i: -raw[i])
    sequences = [
        make_sequence(temperature=0.0, logit_bias={3: 100.0}, num_logprobs=2),
        make_sequence(seed=1, temperature=2.0, num_logprobs=0),
        make_sequence(temperature=0.0),
    ]
    biased, chosen, none = sample_tokens(
        torch.tensor([logits] * 3), rows_of(sequences), sampler
    ).result()
    assert biased.logprobs is not None
    assert (biased.token_id, biased.logprobs.token_id) == (3, 3)
    assert biased.logprobs.logprob == pytest.approx(raw[3], abs=1e-5)
    assert [token_id for token_id, _ in biased.logprobs.top] == ranked[:2]
    assert [p for _, p in biased.logprobs.top] == pytest.approx([raw[i] for i in ranked[:2]])
    assert chosen.logprobs is not None
    assert chosen.logprobs.logprob == pytest.approx(raw[chosen.token_id], abs=1e-5)
    assert chosen.logprobs.top == ()
    assert none.logprobs is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_finite_logits_affects_no_other(sampler: Sampler, temperature: float) -> None:
    """Its id is negative; other rows get their tokens."""
    rows = torch.tensor([make_logits(), [math.nan] * VOCAB_SIZE, make_logits()])
    sequences = [make_sequence(temperature=temperature, seed=s) for s in range(3)]
    first, broken, third = sample_tokens(rows, rows_of(sequences), sampler).result()
    assert broken.token_id == -1
    assert min(first.token_id, third.token_id) >= 0
