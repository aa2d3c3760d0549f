"""A flood of embeddings, most of whose clients leave, beside clients that generate."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mesh.rpc.channel import call_unary, open_channel
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.chaos.cluster import Cluster, Node, running_cluster
from tests.chaos.first_tokens import is_slowed_at_most_twofold, milliseconds, time_requests
from tests.chaos.test_backpressure import wait_engine_idle

SEED = int(os.environ.get("SEED") or 1)
SECONDS = float(os.environ.get("DURATION") or 60)

NUM_FLOODERS = 4
NUM_INPUTS = 64
MAX_INPUT_TOKENS = 2000

LEAST_SECONDS = 0.1
"""A time to the first token below this is not judged: it is noise on a shared machine."""

IDLE_SECONDS = 5.0
"""Time after which nothing of the flood is computed any more; a piece takes milliseconds."""

DRAIN_SECONDS = 1.0

pytestmark = pytest.mark.timeout(600 + 4 * SECONDS)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """One process of each service."""
    settings = {"INFERENCE_DRAIN_SECONDS": str(DRAIN_SECONDS)}
    with running_cluster(tmp_path, {}, settings) as cluster:
        yield cluster


def body(rng: random.Random) -> bytes:
    """A request with many long inputs."""
    lengths = [rng.randint(1, MAX_INPUT_TOKENS) for _ in range(NUM_INPUTS)]
    inputs = [[rng.randrange(100, 1000)] * length for length in lengths]
    return json.dumps({"model": "demo", "input": inputs}).encode()


async def flood(url: str, rng: random.Random, statuses: Counter[int]) -> None:
    """Sends large requests; most are left after a short time, some are awaited."""
    # Made before, because it would delay the other clients, which are in this process.
    bodies = [body(rng) for _ in range(4)]
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while True:
            limit = rng.choice([0.5, 1.0, 2.0, 30.0])
            with contextlib.suppress(httpx.TimeoutException):
                response = await client.post(
                    "/v1/embeddings", content=rng.choice(bodies), timeout=limit
                )
                statuses[response.status_code] += 1
                await asyncio.sleep(0.1)


@asynccontextmanager
async def flooding(cluster: Cluster, statuses: Counter[int]) -> AsyncIterator[None]:
    """Floods the gateway inside the block; at its end all clients leave."""
    tasks = [
        asyncio.create_task(flood(cluster.urls[0], random.Random(SEED + number), statuses))
        for number in range(NUM_FLOODERS)
    ]
    try:
        yield
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_flood_of_embeddings_slows_others_at_most_twofold(cluster: Cluster) -> None:
    """First tokens of others stay quick, the flood ends with its clients, and SIGTERM ends it."""
    statuses: Counter[int] = Counter()
    async with httpx.AsyncClient(base_url=cluster.urls[0], timeout=60, trust_env=False) as client:
        await time_requests(client, 0.5)  # warm-up
        quiet = await time_requests(client, SECONDS / 4)
        async with flooding(cluster, statuses):
            await asyncio.sleep(1)
            flooded = await time_requests(client, SECONDS / 2)
            assert await num_waiting(cluster) > 0, "the flood does not reach the engine"
        for name, times in (("quiet", quiet), ("flooded", flooded)):
            print(f"first token {name}: {milliseconds(times)}")
        print(f"responses to the flood: {dict(statuses)}")
        assert is_slowed_at_most_twofold(quiet, flooded, LEAST_SECONDS)
        assert set(statuses) <= {200, 429}
        await asyncio.sleep(0.5)  # a client's leaving crosses three services
        async with asyncio.timeout(IDLE_SECONDS):
            await wait_engine_idle(cluster)
        async with flooding(cluster, Counter()):
            await asyncio.sleep(1)
            [engine] = cluster.of("inference")
            await ends_in_time(engine)


async def num_waiting(cluster: Cluster) -> int:
    """Number of waiting sequences and live embedding calls, from the engine."""
    channel = open_channel(cluster.of("inference")[0].address)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        load = await call_unary(stub.GetLoad, inference_pb2.GetLoadRequest(), 10)
    finally:
        await channel.close()
    return load.num_requests_waiting


async def ends_in_time(engine: Node) -> None:
    """Asks the engine to end, while it computes embeddings."""
    began = time.monotonic()
    engine.send(signal.SIGTERM)
    assert await asyncio.to_thread(engine.wait) == 0
    assert time.monotonic() - began < DRAIN_SECONDS + IDLE_SECONDS
    assert "Traceback" not in engine.log.read_text()
