"""Requirements on every sampler: the requested distribution, and special rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from inference.sampling.sampler import Sampler
from inference.sampling.sampling_params import SamplingParams
from inference.structured_output.masks import Masks
from tests.inference.sampled import VOCAB_SIZE, make_logits, make_sequence, rows_of

NUM_SAMPLES = 3000


def sample_counts(
    sampler: Sampler, logits: list[float], num_samples: int = NUM_SAMPLES, **params: Any
) -> Counter[int]:
    """How often each id is sampled in one batch with a different seed in each row."""
    sequences = [make_sequence(seed=seed, **params) for seed in range(num_samples)]
    return Counter(
        sampler.sample(torch.tensor([logits] * num_samples), rows_of(sequences), None).tolist()
    )


def sample_one(
    sampler: Sampler, logits: list[float], mask: list[int] | None = None, **p: Any
) -> int:
    """The id sampled for a single row; `mask` lists the allowed ids."""
    masks = None
    if mask is not None:
        bitmasks = np.zeros((1, -(-len(logits) // 32)), dtype=np.uint32)
        for token_id in mask:
            bitmasks[0, token_id // 32] |= np.uint32(1 << token_id % 32)
        masks = Masks([0], bitmasks.view(np.int32))
    [sampled] = sampler.sample(
        torch.tensor([logits]), rows_of([make_sequence(**p)]), masks
    ).tolist()
    return sampled


def reference(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The distribution after temperature, top_k, top_p and min_p, in plain Python."""
    scaled = [value / params.temperature for value in logits]
    highest = max(scaled)
    weights = {i: math.exp(value - highest) for i, value in enumerate(scaled)}
    ranked = sorted(weights, key=lambda i: -weights[i])[: params.top_k or len(weights)]
    mass = sum(weights[i] for i in ranked)
    kept, before = [], 0.0
    for i in ranked:
        if before >= params.top_p:
            break
        kept.append(i)
        before += weights[i] / mass
    kept = [i for i in kept if weights[i] >= params.min_p * weights[ranked[0]]]
    mass = sum(weights[i] for i in kept)
    return {i: weights[i] / mass for i in kept}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.7, "min_p": 0.1, "temperature": 1.3},
    ],
)
def test_samples_follow_the_requested_distribution(
    sampler: Sampler, params: dict[str, float]
) -> None:
    """Filtered tokens are never sampled, the others with their renormalised probabilities."""
    logits = make_logits()
    expected = reference(logits, SamplingParams(**params))  # type: ignore[arg-type]
    counts = sample_counts(sampler, logits, **params)
    assert set(counts) <= set(expected)
    for token_id, probability in expected.items():
        # Five standard deviations: a random failure has a chance of one in a million.
        tolerance = 5 * math.sqrt(probability * (1 - probability) / NUM_SAMPLES)
        assert abs(counts[token_id] / NUM_SAMPLES - probability) <= tolerance + 1e-9


@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "top_p": 0.9}, {"top_k": 60}])
def test_large_vocabularies_follow_the_distribution(
    sampler: Sampler, params: dict[str, Any]
) -> None:
    """Pearson's chi-square test; the vocabulary is no multiple of a vector's length."""
    logits, num_samples = make_logits(3, 203), 20_000
    expected = reference(logits, SamplingParams(**params))
    counts: Counter[int] = Counter()
    for begin in range(0, num_samples, 1000):
        sequences = [make_sequence(seed=begin + number, **params) for number in range(1000)]
        counts.update(
            sampler.sample(torch.tensor([logits] * 1000), rows_of(sequences), None).tolist()
        )
    assert set(counts) <= set(expected)
    often = [i for i, p in expected.items() if p * num_samples >= 5]
    statistic = sum(
        (counts[i] - expected[i] * num_samples) ** 2 / (expected[i] * num_samples) for i in often
    )
    freedom = len(often) - 1
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_no_rows(sampler: Sampler) -> None:
    """A step that only prefills samples nothing."""
    assert sampler.sample(torch.empty((0, VOCAB_SIZE)), [], None).tolist() == []


def test_positions_are_independent(sampler: Sampler) -> None:
    """One seed at many positions follows the same distribution as many seeds at one."""
    logits = make_logits()
    sequences = [make_sequence([0], [1] * count, seed=-3) for count in range(1500)]
    sampled = sampler.sample(torch.tensor([logits] * 1500), rows_of(sequences), None).tolist()
    for token_id, probability in reference(logits, SamplingParams()).items():
        tolerance = 5 * math.sqrt(probability * (1 - probability) / 1500)
        assert abs(sampled.count(token_id) / 1500 - probability) <= tolerance + 1e-9


def test_greedy_ignores_seed_and_filters(sampler: Sampler) -> None:
    """Temperature 0 returns the most likely token; the first one of equals."""
    logits = make_logits()
    best = max(range(VOCAB_SIZE), key=lambda i: logits[i])
    assert sample_counts(sampler, logits, 5, temperature=0.0, top_p=0.5, top_k=3) == Counter(
        {best: 5}
    )
    equal = [0.0] * 40
    equal[37] = equal[19] = equal[4] = 2.0
    assert sample_one(sampler, equal, temperature=0.0) == 4
    assert sample_one(sampler, equal, mask=[0, 37, 19], temperature=0.0) == 19


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 31, 33, 203])
@pytest.mark.parametrize("params", [{}, {"top_k": 10**12}, {"top_p": 1e-40}, {"top_k": 1}])
def test_small_vocabularies(sampler: Sampler, vocab_size: int, params: dict[str, Any]) -> None:
    """Vocabularies of one token and around a vector's length; huge top_k, tiny top_p."""
    logits = make_logits(5, vocab_size)
    counts = sample_counts(sampler, logits, 50, **params)
    best = max(range(vocab_size), key=lambda i: logits[i])
    assert set(counts) <= set(range(vocab_size))
    if params.get("top_k") == 1 or "top_p" in params:
        assert set(counts) == {best}


def test_filters_keep_the_first_of_equals(sampler: Sampler) -> None:
    """Of tokens with equal logits at the cut of top_k or top_p, the lowest ids are kept."""
    equal = [1.0] * 20 + [3.0] + [1.0] * 20
    assert set(sample_counts(sampler, equal, 400, top_k=4)) == {20, 0, 1, 2}
    # 3.0 holds 15.6 % of the mass, each of the others 2.1 %.
    assert set(sample_counts(sampler, equal, 400, top_p=0.19)) == {20, 0, 1}
    assert set(sample_counts(sampler, [0.5] * 33, 400, top_k=5, top_p=0.5)) == {0, 1, 2}
    for zeros in ([0.0, -0.0] * 9, [-0.0, 0.0] * 9):
        assert set(sample_counts(sampler, zeros, 400, top_k=3)) == {0, 1, 2}


def test_impossible_tokens_are_never_sampled(sampler: Sampler) -> None:
    """A token with a logit of minus infinity is never sampled, whatever the filters."""
    logits = [-math.inf] * 50
    logits[7], logits[33] = 0.0, -1.0
    for params in ({}, {"top_k": 10}, {"top_p": 0.99999}, {"min_p": 0.01}, {"temperature": 2.0}):
        assert set(sample_counts(sampler, logits, 60, **params)) == {7, 33}
    logits[7] = -math.inf
    for params in ({}, {"top_k": 10, "top_p": 0.5}, {"min_p": 1.0}, {"temperature": 0.0}):
        assert set(sample_counts(sampler, logits, 20, **params)) == {33}


def test_masks_restrict_their_rows(sampler: Sampler) -> None:
    """A mask affects its row alone; top_k and top_p apply to the allowed tokens."""
    logits = make_logits(2, 77)
    worst = sorted(range(77), key=lambda i: logits[i])[:5]
    bitmasks = np.full((2, 3), 0, dtype=np.uint32)
    for token_id in worst:
        bitmasks[0, token_id // 32] |= np.uint32(1 << token_id % 32)
    bitmasks[1] = 2**32 - 1
    for params in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.0}):
        sequences = [make_sequence(seed=seed, **params) for seed in range(4)]
        rows = torch.tensor([logits] * 4)
        free = sampler.sample(rows.clone(), rows_of(sequences), None).tolist()
        sampled = sampler.sample(
            rows, rows_of(sequences), Masks([1, 3], bitmasks.view(np.int32))
        ).tolist()
        assert sampled[1] in worst
        assert [sampled[i] for i in (0, 2, 3)] == [free[i] for i in (0, 2, 3)]
    assert sample_one(sampler, logits, mask=[76], top_k=2, top_p=0.1) == 76
    assert sample_one(sampler, logits, mask=[]) == -1


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_rows_with_nan_or_infinity(sampler: Sampler, params: dict[str, Any]) -> None:
    """The id is -1 for an allowed NaN or infinity, or if no allowed logit is finite."""
    for value in (math.nan, math.inf):
        for place in (0, 20, 36):
            logits = make_logits(1, 37)
            logits[place] = value
            assert sample_one(sampler, logits, **params) == -1
            assert sample_one(sampler, logits, mask=[3], **params) == 3
    assert sample_one(sampler, [-math.inf] * 37, **params) == -1
