"""A flood from one key over two gateways and two orchestrators, beside another client."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from gateway.keys.key_file import NO_LIMITS, Limits, entry
from tests.chaos.cluster import FAKE, READY_SECONDS, ROOT, Cluster
from tests.chaos.first_tokens import milliseconds, percentile
from tests.chaos.load import CompletionRequest, stream_completion
from tests.e2e.support.stack import free_ports

SECONDS = float(os.environ.get("DURATION") or 60)
"""Time of the measurement: half of it quiet, half of it with the flood, in rounds."""

ROUNDS = 6
RATE = 60.0
"""Requests of the flood per second."""

MAX_CONCURRENT = 8
PLACES = 16
"""Concurrent requests of each orchestrator."""

MOST_SLOWED = 1.5
JUDGED_SECONDS = 30.0
"""Shortest measurement whose times are judged: a short one has no 99th percentile."""

LEAST_SECONDS = 0.1
"""A time to the first token below this is not judged: it is noise on a shared machine."""

MEASURED = CompletionRequest(prompt="Light is", max_tokens=5)

pytestmark = pytest.mark.timeout(300 + 4 * SECONDS)


@contextmanager
def two_of_each(folder: Path, limits: Limits) -> Iterator[Cluster]:
    """Two gateways and two orchestrators in front of one fake engine."""
    keys = folder / "keys.toml"
    keys.write_text(entry("flooder", "flood", limits) + "\n" + entry("other", "calm"))
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    settings = {
        **FAKE,
        "INFERENCE_FAKE_TOKENS_PER_SECOND": "50",
        "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": str(PLACES),
        "GATEWAY_API_KEYS_FILE": str(keys),
        "GATEWAY_PEERS_HOST": ",".join(addresses),
    }
    cluster = Cluster(folder, {"gateway": 2, "orchestrator": 2}, settings)
    listen = iter(addresses)
    try:
        for node in cluster.nodes:
            if node.service == "gateway":
                node.start(GATEWAY_PEERS_LISTEN=next(listen))
            else:
                node.start()
        cluster.wait_ready(READY_SECONDS)
        yield cluster
    finally:
        for node in cluster.nodes:
            node.end()


@asynccontextmanager
async def flooding(cluster: Cluster) -> AsyncIterator[dict[str, object]]:
    """A flood in a separate process, at its limit inside the block; its report afterwards."""
    report: dict[str, object] = {}
    command = [sys.executable, "-m", "tests.chaos.key_flood", "flood", str(RATE), *cluster.urls]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_SECONDS):
            assert await process.stdout.readline() == b"refused\n"
        yield report
        process.terminate()
        report |= json.loads((await process.communicate())[0])
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def measure(clients: list[httpx.AsyncClient], seconds: float) -> list[float]:
    """Times to the first token of one request after another, at the gateways in turn."""
    times: list[float] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    for client in itertools.cycle(clients):
        if loop.time() >= end:
            return times
        result = await stream_completion(client, MEASURED)
        assert result.complete, f"another client was refused: {result}"
        times.append(result.ttft)
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("limits", "most", "most_on_average"),
    [
        # A burst may exceed the limit by as much at each further gateway, and only a burst.
        pytest.param(Limits(max_concurrent=MAX_CONCURRENT), 16, 10, id="limited key"),
        # An eighth of the places is kept for other keys.
        pytest.param(NO_LIMITS, 28, 28, id="fair shares"),
    ],
)
async def test_a_flood_from_one_key_leaves_others_alone(
    tmp_path: Path, limits: Limits, most: int, most_on_average: float
) -> None:
    """The key has its limit once, not once at each gateway; no other client is refused."""
    quiet: list[float] = []
    flooded: list[float] = []
    with two_of_each(tmp_path, limits) as cluster:
        headers = {"authorization": "Bearer calm"}
        clients = [
            httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False)
            for url in cluster.urls
        ]
        await measure(clients, 0.5)  # warm-up
        rounds = ROUNDS if SECONDS >= JUDGED_SECONDS else 1
        for _ in range(rounds):
            quiet += await measure(clients, SECONDS / 2 / rounds)
            async with flooding(cluster) as report:
                flooded += await measure(clients, SECONDS / 2 / rounds)
            print(report)
            assert set(report["statuses"]) == {"200", "429"}  # type: ignore[call-overload]
            assert report["peak"] <= most  # type: ignore[operator]
            assert report["mean"] <= most_on_average  # type: ignore[operator]
        for client in clients:
            await client.aclose()
    for name, times in (("quiet", quiet), ("flooded", flooded)):
        print(f"first token {name}: {milliseconds(times)}")
    if limits is not NO_LIMITS and SECONDS >= JUDGED_SECONDS:
        assert percentile(flooded, 0.99) <= max(
            MOST_SLOWED * percentile(quiet, 0.99), LEAST_SECONDS
        )
