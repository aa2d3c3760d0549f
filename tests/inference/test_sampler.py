"""The batched sampler against plain references, row by row."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from inference.errors import InvalidSamplingParams
from inference.sampler import gumbel_noise, sample
from inference.sampling_params import SamplingParams
from inference.sequence import Sequence

VOCAB_SIZE = 32
NUM_DRAWS = 3000


def make_logits(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> list[float]:
    """Logits with a lively spread and no ties."""
    generator = torch.Generator().manual_seed(seed)
    return [float(x) for x in torch.randn(vocab_size, generator=generator) * 2]


def make_sequence(
    prompt: list[int] | None = None, completion: list[int] | None = None, **params: Any
) -> Sequence:
    """A sequence in the middle of its completion."""
    prompt, completion = prompt or [0], completion or []
    ids = [*prompt, *completion]
    return Sequence("s", ids, SamplingParams(**params), num_resumed_tokens=len(completion))


def draw(logits: list[float], num_draws: int = NUM_DRAWS, **params: Any) -> Counter[int]:
    """How often each id is drawn, over as many seeds, in one batch."""
    sequences = [make_sequence(seed=seed, **params) for seed in range(num_draws)]
    rows = torch.tensor([logits] * num_draws)
    return Counter(token.token_id for token in sample(rows, sequences))


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
def test_draws_follow_the_distribution_asked_for(params: dict[str, float]) -> None:
    """Nothing outside the filters is drawn, and what is left with its own frequency."""
    logits = make_logits()
    expected = reference(logits, SamplingParams(**params))  # type: ignore[arg-type]
    counts = draw(logits, **params)
    assert set(counts) <= set(expected)
    for token_id, probability in expected.items():
        # Five standard deviations: one in a million fails by chance, and the seeds are fixed.
        tolerance = 5 * math.sqrt(probability * (1 - probability) / NUM_DRAWS)
        assert abs(counts[token_id] / NUM_DRAWS - probability) <= tolerance + 1e-9


def test_greedy_takes_the_likeliest_whatever_else_is_set() -> None:
    """Temperature 0 knows no seed and no filter."""
    logits = make_logits()
    best = max(range(VOCAB_SIZE), key=lambda i: logits[i])
    assert draw(logits, 5, temperature=0.0, top_p=0.5, top_k=3) == Counter({best: 5})


def test_a_seeded_row_is_the_same_alone_and_in_any_batch() -> None:
    """Neighbours with other filters, penalties and none do not change it."""
    logits = make_logits()
    mixed: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"seed": 7, "top_k": 3},
        {"seed": 7, "top_p": 0.8, "temperature": 1.5},
        {"seed": 7},
        {"min_p": 0.3, "frequency_penalty": 1.0},
    ]
    for params in mixed[1:4]:
        [alone] = sample(torch.tensor([logits]), [make_sequence(**params)])
        for order in (mixed, mixed[::-1]):
            rows = torch.tensor([make_logits(9) if p is not params else logits for p in order])
            batch = sample(rows, [make_sequence(**p) for p in order])
            assert batch[order.index(params)] == alone


def test_noise_differs_by_seed_position_and_token() -> None:
    """Each of the three counts; the same three give the same noise in any row."""
    device = torch.device("cpu")
    noise = gumbel_noise([1, 2, 1, 1], [0, 0, 1, 0], 1000, device)
    assert torch.equal(noise[0], noise[3])
    for other in (noise[1], noise[2]):
        correlation = torch.corrcoef(torch.stack([noise[0], other]))[0, 1]
        assert abs(float(correlation)) < 0.15
    # Euler's constant and pi^2/6: mean and variance of the standard Gumbel distribution.
    many = gumbel_noise(list(range(200)), [5] * 200, 1000, device)
    assert float(many.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(many.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert torch.isfinite(many).all()


def penalized(logits: list[float], sequence: Sequence) -> list[float]:
    """Penalties in plain Python."""
    params, values = sequence.params, list(logits)
    ids = list(sequence.token_ids)
    counts = Counter(ids[sequence.num_prompt_tokens :])
    for i in range(len(values)):
        if i in ids:
            factor = params.repetition_penalty
            values[i] = values[i] / factor if values[i] > 0 else values[i] * factor
        values[i] -= params.frequency_penalty * counts[i]
        values[i] -= params.presence_penalty * (counts[i] > 0)
    return values


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.5},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.9},
        {"repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 1.1},
    ],
)
def test_penalties_equal_the_reference(params: dict[str, float]) -> None:
    """Of prompt and completion for repetition, of the completion alone for the others."""
    logits = make_logits()
    prompt, completion = [1, 1, 2, 5], [5, 6, 6, 6, 8]
    rows = torch.tensor([logits, logits])
    plain = make_sequence(temperature=0.0)
    sequence = make_sequence(prompt, completion, temperature=0.0, **params)
    sample(rows, [sequence, plain])
    assert rows[0].tolist() == pytest.approx(penalized(logits, sequence), abs=1e-5)
    assert rows[1].tolist() == pytest.approx(logits)


def test_logit_bias_forces_and_forbids() -> None:
    """The bias is added before anything is chosen, and only in its own row."""
    logits = make_logits()
    best = max(range(VOCAB_SIZE), key=lambda i: logits[i])
    other = (best + 1) % VOCAB_SIZE
    sequences = [
        make_sequence(temperature=0.0, logit_bias={other: 100.0}),
        make_sequence(temperature=0.0, logit_bias={best: -100.0}),
        make_sequence(temperature=0.0),
    ]
    forced, forbidden, free = sample(torch.tensor([logits] * 3), sequences)
    assert (forced.token_id, free.token_id) == (other, best)
    assert forbidden.token_id not in (best,)


def test_no_stop_token_before_min_tokens() -> None:
    """Stop tokens are out of reach until so many tokens are there, then back in it."""
    logits = make_logits()
    best = max(range(VOCAB_SIZE), key=lambda i: logits[i])
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": frozenset([best])}
    sequences = [make_sequence([0], [1] * count, **params) for count in (0, 1, 2)]
    first, second, third = sample(torch.tensor([logits] * 3), sequences)
    assert best not in (first.token_id, second.token_id)
    assert third.token_id == best


def test_logprobs_are_of_the_raw_distribution() -> None:
    """Chosen and top ones, before bias and temperature, and only where asked for."""
    logits = make_logits()
    raw = torch.log_softmax(torch.tensor(logits), dim=-1).tolist()
    ranked = sorted(range(VOCAB_SIZE), key=lambda i: -raw[i])
    sequences = [
        make_sequence(temperature=0.0, logit_bias={3: 100.0}, num_logprobs=2),
        make_sequence(seed=1, temperature=2.0, num_logprobs=0),
        make_sequence(temperature=0.0),
    ]
    biased, chosen, none = sample(torch.tensor([logits] * 3), sequences)
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
def test_a_row_without_finite_logits_says_so_alone(temperature: float) -> None:
    """Its id is negative; its neighbours are served."""
    rows = torch.tensor([make_logits(), [math.nan] * VOCAB_SIZE, make_logits()])
    sequences = [make_sequence(temperature=temperature, seed=s) for s in range(3)]
    first, broken, third = sample(rows, sequences)
    assert broken.token_id == -1
    assert min(first.token_id, third.token_id) >= 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1. Given: 0"),
        ({"temperature": -0.1}, "temperature must be between 0 and 100. Given: -0.1"),
        ({"temperature": math.nan}, "temperature must be between 0 and 100. Given: nan"),
        ({"top_p": 0.0}, "top_p must be more than 0 and at most 1. Given: 0.0"),
        ({"top_k": -1}, "top_k must be at least 0. Given: -1"),
        ({"min_p": 1.5}, "min_p must be between 0 and 1. Given: 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be more than 0"),
        ({"presence_penalty": 3.0}, "presence_penalty must be between -2 and 2. Given: 3.0"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must be between -2 and 2"),
        ({"seed": 2**64}, "seed must be a 64-bit integer"),
        ({"max_tokens": 2, "min_tokens": 3}, r"min_tokens must be at most max_tokens \(2\)"),
        ({"num_logprobs": 21}, "num_logprobs must be between 0 and 20. Given: 21"),
        ({"num_prompt_logprobs": 21}, "num_prompt_logprobs must be between 0 and 20. Given: 21"),
        ({"logit_bias": {5: 101.0}}, r"logit_bias\[5\] must be between -100 and 100"),
        ({"stop_token_ids": frozenset(range(65))}, "stop_token_ids must be at most 64 ids"),
    ],
)
def test_bad_params_are_refused_by_name(params: dict[str, Any], message: str) -> None:
    """The message names the field, the limit and what was given."""
    with pytest.raises(InvalidSamplingParams, match=message):
        SamplingParams(**params)
