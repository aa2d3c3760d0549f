"""A flood of requests that a client should not send, beside clients with valid ones."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chaos.cluster import Cluster, running_cluster
from tests.e2e.support.poison import CHAT, poison

SEED = int(os.environ.get("SEED") or 1)
SECONDS = float(os.environ.get("DURATION") or 60)
NUM_POISONERS = 8

MAX_RATIO = 2.0
"""Most slowdown of the others' 99th percentile of the time to the first token."""

LEAST_SECONDS = 0.25
"""A time to the first token below this is not judged: it is noise on a shared machine."""

pytestmark = pytest.mark.timeout(600 + 4 * SECONDS)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two engines, one of each other service."""
    with running_cluster(tmp_path, {"inference": 2}) as cluster:
        yield cluster


async def first_token_seconds(client: httpx.AsyncClient) -> float:
    """The time to the first token of a valid request, which must succeed."""
    began = time.monotonic()
    body = {**CHAT, "max_tokens": 8, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        seconds = 0.0
        async for line in response.aiter_lines():
            assert '"error"' not in line, line
            if not seconds and '"content"' in line:
                seconds = time.monotonic() - began
    assert seconds, "no token"
    return seconds


async def percentile_99(client: httpx.AsyncClient, seconds: float) -> float:
    """The 99th percentile of valid requests, sent one after another for some time."""
    end = time.monotonic() + seconds
    times: list[float] = []
    while time.monotonic() < end or len(times) < 20:
        times.append(await first_token_seconds(client))
    return sorted(times)[int(len(times) * 0.99)]


async def test_no_engine_is_lost_for_a_client_s_mistake(cluster: Cluster) -> None:
    """All poison is 400, and the valid requests of another client are as fast as before."""
    [url] = cluster.urls
    numbers = itertools.count(SEED * 1_000_000)
    statuses: Counter[tuple[str, int]] = Counter()

    async def send_poison(client: httpx.AsyncClient) -> None:
        while True:
            number = next(numbers)
            requests = list(poison(number).items())
            random.Random(number).shuffle(requests)
            for name, body in requests:
                response = await client.post("/v1/chat/completions", json=body)
                statuses[name, response.status_code] += 1

    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        await percentile_99(client, 1)  # warm-up
        quiet = await percentile_99(client, SECONDS / 3)
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as other:
            poisoners = [asyncio.create_task(send_poison(other)) for _ in range(NUM_POISONERS)]
            busy = await percentile_99(client, SECONDS * 2 / 3)
            for task in poisoners:
                task.cancel()
            await asyncio.gather(*poisoners, return_exceptions=True)
        print(f"99th percentile of TTFT: {quiet:.3f} s quiet, {busy:.3f} s beside", statuses)
        assert {status for _, status in statuses} == {400}, statuses
        assert {name for name, _ in statuses} == poison(0).keys()
        assert busy <= max(MAX_RATIO * quiet, LEAST_SECONDS)
        await first_token_seconds(client)
    for node in (*cluster.of("orchestrator"), *cluster.of("inference")):
        assert node.alive
        log = node.log.read_text()
        for event in ("replica lost", "circuit breaker opened", "engine unhealthy"):
            assert event not in log, event
