"""A short form of `make soak`: requests of all kinds, a third of them cancelled early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.soak import CONCURRENCY, problems, run
from inference.model.loading import EngineOptions
from tests.inference.spelling import save_spelling

NUM_REQUESTS = 400


async def test_finished_and_cancelled_requests_leave_nothing(
    tmp_path: Path, no_tasks_left: None
) -> None:
    """At the end every block is free, no sequence is left, and memory has not grown."""
    save_spelling(tmp_path)
    options = replace(
        EngineOptions.defaults(tmp_path, "soak"),
        kv_cache_tokens=512,
        max_num_seqs=16,
        max_num_waiting=CONCURRENCY,
        num_speculative_tokens=4,
        threads=torch.get_num_threads(),
    )
    soaked = await run(options, NUM_REQUESTS, seed=1)
    assert problems(soaked, NUM_REQUESTS) == []
    assert set(soaked.outcomes) >= {"length", "aborted", "deadline"}
