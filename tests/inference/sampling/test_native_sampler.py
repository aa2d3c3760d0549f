"""Compares the native sampler with torch's on thousands of random rows."""

from __future__ import annotations

import math
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.model.native.pool import ThreadPool
from inference.model.native.sampler import NativeSampler
from inference.sampling.torch_sampler import TorchSampler, gumbel_noise
from inference.scheduler.scheduler_output import Row
from inference.scheduler.sequence import Sequence
from inference.structured_output.masks import Masks
from tests.inference.model.native import VARIANTS, use_variant
from tests.inference.sampled import make_sequence, rows_of

TOLERANCE = 1e-5


@pytest.fixture(autouse=True, params=VARIANTS)
def variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test with each CPU variant of the library."""
    use_variant(request.param, monkeypatch)


def random_rows(rng: random.Random, num_rows: int) -> list[Sequence]:
    """Sequences with random sampling parameters."""
    return [
        make_sequence(
            [0],
            [1] * rng.randrange(50),
            seed=rng.choice([rng.randrange(2**64), -rng.randrange(1, 2**63), rng.randrange(9)]),
            temperature=rng.choice([0.0, 1.0, 1.0, 0.7, rng.uniform(0.05, 2.0), 2.0]),
            top_k=rng.choice([0, 0, 1, 2, 40, rng.randrange(1, 6000)]),
            top_p=rng.choice([1.0, 1.0, 0.95, 0.5, rng.uniform(1e-6, 1.0)]),
            min_p=rng.choice([0.0, 0.0, 0.05, rng.random()]),
        )
        for _ in range(num_rows)
    ]


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> Tensor:
    """Flat and peaked rows, some with ties, some with impossible tokens.

    As in the decoder's output, each row is a slice of a wider one; its padding would win if the
    sampler read it.
    """
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    rows = torch.full((num_rows, vocab_size + 13), 1e9)
    for row in rows:
        values = torch.randn(vocab_size, generator=generator) * rng.choice([0.1, 1.0, 5.0, 300.0])
        if rng.random() < 0.3:
            values = values.round()
        if rng.random() < 0.2:
            values[torch.rand(vocab_size, generator=generator) < 0.9] = -math.inf
        row[:vocab_size] = values
    return rows[:, :vocab_size]


def random_masks(rng: random.Random, num_rows: int, vocab_size: int) -> Masks | None:
    """Masks for about a third of the rows; each forbids most tokens."""
    rows = [number for number in range(num_rows) if rng.random() < 0.3]
    bits = np.random.default_rng(rng.randrange(2**31))
    shape = len(rows), -(-vocab_size // 32)
    bitmasks = bits.integers(0, 2**32, shape, np.uint32) & bits.integers(0, 2**32, shape, np.uint32)
    return Masks(rows, bitmasks.view(np.int32)) if rows else None


def is_right(values: Tensor, row: Row, token_id: int) -> bool:
    """Whether exact arithmetic, within the tolerance, samples this token from masked logits."""
    params = row.sequence.params
    exact = values.double() / np.float32(params.temperature)
    order = exact.argsort(descending=True, stable=True)
    ordered = exact[order]
    if params.top_k:
        ordered[params.top_k :] = -math.inf
    shares = ordered.softmax(dim=0)
    before = torch.empty_like(exact)
    before[order] = shares.cumsum(dim=0) - shares
    top = set(order[: params.top_k or None].tolist())
    floor = exact.max() + (math.log(params.min_p) if params.min_p else -math.inf)
    scores = exact + gumbel_noise(
        [row.sequence.seed], [row.position], len(exact), exact.device
    ).squeeze(0)

    def stays(number: int, margin: float) -> bool:
        inside = params.top_p == 1.0 or before[number] < params.top_p + margin
        return number in top and bool(inside) and bool(exact[number] >= floor - margin)

    kept = [i for i in range(len(exact)) if stays(i, -TOLERANCE)] or [int(exact.argmax())]
    best = max(float(scores[i]) for i in kept)
    near = TOLERANCE * max(1.0, abs(best))
    return stays(token_id, TOLERANCE) and float(scores[token_id]) >= best - near


@pytest.mark.timeout(180)
@pytest.mark.parametrize("vocab_size", [1, 7, 16, 33, 500, 5003])
def test_it_samples_the_same_tokens_as_torch(vocab_size: int) -> None:
    """The ids are equal unless two candidates are so close that rounding decides."""
    rng = random.Random(vocab_size)
    native, reference = NativeSampler(ThreadPool(3)), TorchSampler()
    num_rows, num_different = 0, 0
    for _ in range(20):
        rows = rows_of(random_rows(rng, 64))
        logits = random_logits(rng, len(rows), vocab_size)
        masks = random_masks(rng, len(rows), vocab_size)
        wide = logits.as_strided((len(rows), vocab_size + 13), (vocab_size + 13, 1)).clone()
        sampled = native.sample(wide[:, :vocab_size], rows, masks).tolist()
        assert bool((wide[:, vocab_size:] == 1e9).all()), "the sampler wrote after the vocabulary"
        expected = reference.sample(logits, rows, masks).tolist()  # masks `logits`
        for number, (ours, theirs) in enumerate(zip(sampled, expected, strict=True)):
            num_rows += 1
            if ours == theirs:
                continue
            num_different += 1
            for token_id in (ours, theirs):
                assert is_right(logits[number], rows[number], token_id), rows[number]
    assert num_different <= num_rows / 200


@pytest.mark.parametrize("scale", [1e4, 1e7])
def test_huge_logits_are_rounded_as_torch_rounds_them(scale: float) -> None:
    """If the noise is below a float's precision, the first of the largest is sampled."""
    logits = (
        torch.randn(100, 300, generator=torch.Generator().manual_seed(1)).mul(4).round() * scale
    )
    rows = rows_of([make_sequence(seed=seed, temperature=1.5) for seed in range(100)])
    expected = TorchSampler().sample(logits.clone(), rows, None).tolist()
    assert NativeSampler(ThreadPool(1)).sample(logits, rows, None).tolist() == expected


@pytest.mark.parametrize("slope", [3.0, 0.01, -3.0])
def test_sorted_logits(slope: float) -> None:
    """With logits in ascending or descending order the bound on the noise still holds."""
    logits = torch.arange(1000).mul(slope).repeat(50, 1)
    rows = rows_of([make_sequence(seed=seed) for seed in range(50)])
    expected = TorchSampler().sample(logits.clone(), rows, None).tolist()
    assert NativeSampler(ThreadPool(1)).sample(logits, rows, None).tolist() == expected


def test_threads_and_batching_do_not_change_tokens() -> None:
    """A row gets the same token alone or in a batch, on one thread or four."""
    rng = random.Random(5)
    rows = rows_of(random_rows(rng, 60))
    logits = random_logits(rng, 60, 777)
    one = NativeSampler(ThreadPool(1))
    together = one.sample(logits.clone(), rows, None).tolist()
    assert NativeSampler(ThreadPool(4)).sample(logits.clone(), rows, None).tolist() == together
    alone = [
        one.sample(logits[n : n + 1].clone(), rows[n : n + 1], None).tolist() for n in range(60)
    ]
    assert [token_id for [token_id] in alone] == together


def test_it_does_not_wait_for_a_busy_pool() -> None:
    """While an embedding occupies the pool, the caller's thread samples the same tokens."""
    pool, rng = ThreadPool(2), random.Random(6)
    rows, logits = rows_of(random_rows(rng, 20)), random_logits(rng, 20, 100)
    sampler = NativeSampler(pool)
    expected = sampler.sample(logits.clone(), rows, None).tolist()
    busy, over = threading.Event(), threading.Event()

    def embed() -> int:
        busy.set()
        return int(over.wait(30))

    with ThreadPoolExecutor(1) as other:
        embedding = other.submit(pool.run, embed)
        assert busy.wait(30)
        try:
            assert sampler.sample(logits.clone(), rows, None).tolist() == expected
            assert not embedding.done()
        finally:
            over.set()
        assert embedding.result() == 1
    assert sampler.sample(logits, rows, None).tolist() == expected


def test_no_rows() -> None:
    """A step that only prefills samples nothing."""
    assert NativeSampler(ThreadPool(2)).sample(torch.empty(0, 50), [], None).tolist() == []


def test_threads_end_with_the_pool() -> None:
    """The pool starts the requested number of threads, less the caller's, and ends them."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    before = set(tasks.iterdir())
    pool = ThreadPool(4)
    assert len(set(tasks.iterdir()) - before) == 3
    del pool
    assert set(tasks.iterdir()) - before == set()
