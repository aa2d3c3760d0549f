"""What both drawers must do: follow the distribution asked for, and cope with odd rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from inference.sampling.sampler import Drawer
from inference.sampling.sampling_params import SamplingParams
from inference.structured_output.masks import Masks
from tests.inference.sampled import VOCAB_SIZE, make_logits, make_sequence, rows_of

NUM_DRAWS = 3000


def draw(
    drawer: Drawer, logits: list[float], num_draws: int = NUM_DRAWS, **params: Any
) -> Counter[int]:
    """How often each id is drawn, over as many seeds, in one batch."""
    sequences = [make_sequence(seed=seed, **params) for seed in range(num_draws)]
    return Counter(
        drawer.draw(torch.tensor([logits] * num_draws), rows_of(sequences), None).tolist()
    )


def draw_one(drawer: Drawer, logits: list[float], mask: list[int] | None = None, **p: Any) -> int:
    """A single row, of which `mask` are the ids allowed."""
    masks = None
    if mask is not None:
        words = np.zeros((1, -(-len(logits) // 32)), dtype=np.uint32)
        for token_id in mask:
            words[0, token_id // 32] |= np.uint32(1 << token_id % 32)
        masks = Masks([0], words.view(np.int32))
    [drawn] = drawer.draw(torch.tensor([logits]), rows_of([make_sequence(**p)]), masks).tolist()
    return drawn


def reference(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The distribution that the params ask for, in plain Python: temperature, k, p, min_p."""
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
def test_draws_follow_the_distribution_asked_for(drawer: Drawer, params: dict[str, float]) -> None:
    """Nothing outside the filters is drawn, and what is left with its own frequency."""
    logits = make_logits()
    expected = reference(logits, SamplingParams(**params))  # type: ignore[arg-type]
    counts = draw(drawer, logits, **params)
    assert set(counts) <= set(expected)
    for token_id, probability in expected.items():
        # Five standard deviations: one in a million fails by chance, and the seeds are fixed.
        tolerance = 5 * math.sqrt(probability * (1 - probability) / NUM_DRAWS)
        assert abs(counts[token_id] / NUM_DRAWS - probability) <= tolerance + 1e-9


@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "top_p": 0.9}, {"top_k": 60}])
def test_many_tokens_follow_it_as_well(drawer: Drawer, params: dict[str, Any]) -> None:
    """Pearson's chi-square over a vocabulary that no vector length divides."""
    logits, num_draws = make_logits(3, 203), 20_000
    expected = reference(logits, SamplingParams(**params))
    counts: Counter[int] = Counter()
    for begin in range(0, num_draws, 1000):
        sequences = [make_sequence(seed=begin + number, **params) for number in range(1000)]
        counts.update(drawer.draw(torch.tensor([logits] * 1000), rows_of(sequences), None).tolist())
    assert set(counts) <= set(expected)
    often = [i for i, p in expected.items() if p * num_draws >= 5]
    statistic = sum(
        (counts[i] - expected[i] * num_draws) ** 2 / (expected[i] * num_draws) for i in often
    )
    freedom = len(often) - 1
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


def test_no_rows_are_no_tokens(drawer: Drawer) -> None:
    """As in a step that only computes pieces of prompts."""
    assert drawer.draw(torch.empty((0, VOCAB_SIZE)), [], None).tolist() == []


def test_positions_draw_anew(drawer: Drawer) -> None:
    """One seed at many positions follows the distribution like many seeds at one."""
    logits = make_logits()
    sequences = [make_sequence([0], [1] * count, seed=-3) for count in range(1500)]
    drawn = drawer.draw(torch.tensor([logits] * 1500), rows_of(sequences), None).tolist()
    for token_id, probability in reference(logits, SamplingParams()).items():
        tolerance = 5 * math.sqrt(probability * (1 - probability) / 1500)
        assert abs(drawn.count(token_id) / 1500 - probability) <= tolerance + 1e-9


def test_greedy_takes_the_likeliest_whatever_else_is_set(drawer: Drawer) -> None:
    """Temperature 0 knows no seed and no filter; of equals it takes the first."""
    logits = make_logits()
    best = max(range(VOCAB_SIZE), key=lambda i: logits[i])
    assert draw(drawer, logits, 5, temperature=0.0, top_p=0.5, top_k=3) == Counter({best: 5})
    equal = [0.0] * 40
    equal[37] = equal[19] = equal[4] = 2.0
    assert draw_one(drawer, equal, temperature=0.0) == 4
    assert draw_one(drawer, equal, mask=[0, 37, 19], temperature=0.0) == 19


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 31, 33, 203])
@pytest.mark.parametrize("params", [{}, {"top_k": 10**12}, {"top_p": 1e-9}, {"top_k": 1}])
def test_small_vocabularies(drawer: Drawer, vocab_size: int, params: dict[str, Any]) -> None:
    """One token, a vector's length and its neighbours; k beyond all; a p that one token holds."""
    logits = make_logits(5, vocab_size)
    counts = draw(drawer, logits, 50, **params)
    best = max(range(vocab_size), key=lambda i: logits[i])
    assert set(counts) <= set(range(vocab_size))
    if params.get("top_k") == 1 or "top_p" in params:
        assert set(counts) == {best}


def test_of_equals_the_first_stay(drawer: Drawer) -> None:
    """Where the k-th and the next, or the last inside p and the next, are the same."""
    equal = [1.0] * 20 + [3.0] + [1.0] * 20
    assert set(draw(drawer, equal, 400, top_k=4)) == {20, 0, 1, 2}
    # 3.0 holds 15.6 % of the mass, each of the others 2.1 %.
    assert set(draw(drawer, equal, 400, top_p=0.19)) == {20, 0, 1}
    assert set(draw(drawer, [0.5] * 33, 400, top_k=5, top_p=0.5)) == {0, 1, 2}
    for zeros in ([0.0, -0.0] * 9, [-0.0, 0.0] * 9):
        assert set(draw(drawer, zeros, 400, top_k=3)) == {0, 1, 2}


def test_what_is_impossible_is_never_drawn(drawer: Drawer) -> None:
    """Logits of minus infinity, with any filter; the only one left is drawn."""
    logits = [-math.inf] * 50
    logits[7], logits[33] = 0.0, -1.0
    for params in ({}, {"top_k": 10}, {"top_p": 0.99999}, {"min_p": 0.01}, {"temperature": 2.0}):
        assert set(draw(drawer, logits, 60, **params)) == {7, 33}
    logits[7] = -math.inf
    for params in ({}, {"top_k": 10, "top_p": 0.5}, {"min_p": 1.0}, {"temperature": 0.0}):
        assert set(draw(drawer, logits, 20, **params)) == {33}


def test_masks_say_what_may_be_drawn(drawer: Drawer) -> None:
    """In their own rows alone; with what is left, k and p are counted anew."""
    logits = make_logits(2, 77)
    worst = sorted(range(77), key=lambda i: logits[i])[:5]
    words = np.full((2, 3), 0, dtype=np.uint32)
    for token_id in worst:
        words[0, token_id // 32] |= np.uint32(1 << token_id % 32)
    words[1] = 2**32 - 1
    for params in ({}, {"top_k": 3}, {"top_p": 0.9}, {"temperature": 0.0}):
        sequences = [make_sequence(seed=seed, **params) for seed in range(4)]
        rows = torch.tensor([logits] * 4)
        free = drawer.draw(rows.clone(), rows_of(sequences), None).tolist()
        drawn = drawer.draw(rows, rows_of(sequences), Masks([1, 3], words.view(np.int32))).tolist()
        assert drawn[1] in worst
        assert [drawn[i] for i in (0, 2, 3)] == [free[i] for i in (0, 2, 3)]
    assert draw_one(drawer, logits, mask=[76], top_k=2, top_p=0.1) == 76
    assert draw_one(drawer, logits, mask=[]) == -1


@pytest.mark.parametrize("params", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_rows_that_are_no_numbers(drawer: Drawer, params: dict[str, Any]) -> None:
    """A NaN or infinity anywhere, or nothing finite, is -1; but what is masked does not count."""
    for value in (math.nan, math.inf):
        for place in (0, 20, 36):
            logits = make_logits(1, 37)
            logits[place] = value
            assert draw_one(drawer, logits, **params) == -1
            assert draw_one(drawer, logits, mask=[3], **params) == 3
    assert draw_one(drawer, [-math.inf] * 37, **params) == -1
