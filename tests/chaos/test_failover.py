"""Killed engines, rolling restarts and lost services, under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.chaos.cluster import Cluster, Node, running_cluster
from tests.chaos.load import PROMPTS, CompletionRequest, CompletionResult, Oracle, stream_completion

NUM_STREAMS = 32
REQUESTS = tuple(CompletionRequest(prompt=prompt, max_tokens=160) for prompt in PROMPTS[:4])
SETTINGS = {
    "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": "128",
    **{f"{name}_DRAIN_SECONDS": "60" for name in ("GATEWAY", "ORCHESTRATOR", "TOKENIZER")},
    "INFERENCE_DRAIN_SECONDS": "1",
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two of each service."""
    numbers = {"tokenizer": 2, "inference": 2, "orchestrator": 2, "gateway": 2}
    with running_cluster(tmp_path, numbers, SETTINGS) as cluster:
        yield cluster


@asynccontextmanager
async def clients(cluster: Cluster) -> AsyncIterator[list[httpx.AsyncClient]]:
    """One HTTP client for each gateway."""
    limits = httpx.Limits(max_connections=None)
    opened = [
        httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=limits)
        for url in cluster.urls
    ]
    yield opened
    for client in opened:
        await client.aclose()


async def test_a_killed_engine_interrupts_none_of_32_streams(
    cluster: Cluster,
) -> None:
    """SIGKILL in mid-stream: every text equals that of an undisturbed request."""
    oracle = Oracle()
    await oracle.learn(cluster.urls[0], REQUESTS)
    async with clients(cluster) as opened:
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        requests = [REQUESTS[number % len(REQUESTS)] for number in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(
                stream_completion(opened[number % 2], request, started=started[number])
            )
            for number, request in enumerate(requests)
        ]
        await asyncio.gather(*(event.wait() for event in started))
        assert not any(stream.done() for stream in streams), "a stream ended before the kill"
        cluster.of("inference")[0].send(signal.SIGKILL)
        results = await asyncio.gather(*streams)
    assert [each for each in results if not each.complete] == []
    for request, result in zip(requests, results, strict=True):
        assert result.text == oracle.texts[request]
    lost = sum("replica lost during" in n.log.read_text() for n in cluster.of("orchestrator"))
    assert lost >= 1, "no stream ran on the killed engine"


async def test_a_rolling_restart_interrupts_no_stream(cluster: Cluster) -> None:
    """Each process in turn gets SIGTERM, exits with 0, and is restarted, under load."""
    oracle = Oracle()
    await oracle.learn(cluster.urls[0], REQUESTS)
    results: list[tuple[CompletionRequest, CompletionResult]] = []
    restarting = True
    draining: set[str] = set()

    async def send_requests(number: int) -> None:
        while restarting:
            request = REQUESTS[(number + len(results)) % len(REQUESTS)]
            async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
                # Like a Kubernetes Service: no new request goes to a gateway that is not ready.
                # Chosen after the client is made, which takes a tenth of a second.
                urls = [url for url in cluster.urls if url not in draining]
                client.base_url = httpx.URL(urls[number % len(urls)])
                results.append((request, await stream_completion(client, request)))

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(send_requests(number))
        for node in cluster.nodes:
            url = f"http://{node.address}"
            draining.add(url)
            await asyncio.sleep(0.2)
            node.send(signal.SIGTERM)
            assert await asyncio.to_thread(node.wait, 90) == 0, node.log.read_text()[-3000:]
            node.start()
            await wait_serving(cluster, node.service)
            draining.discard(url)
        restarting = False
    incomplete = [each for _, each in results if not each.complete]
    assert incomplete == []
    for request, result in results:
        assert result.text == oracle.texts[request]
    assert len(results) > len(cluster.nodes)


async def wait_serving(cluster: Cluster, service: str) -> None:
    """Waits until the service listens again and its clients have had time to reconnect."""
    await asyncio.to_thread(cluster.wait_ready)
    nodes = cluster.of(service)
    end = time.monotonic() + 60
    while not all(is_listening(node) for node in nodes):
        assert time.monotonic() < end, f"{service} did not come back"
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)


def is_listening(node: Node) -> bool:
    """Whether the process has logged that it listens since its last stop."""
    messages = [record["message"] for record in node.records()]
    last = [each for each in messages if each in ("listening", "stopped")][-1:]
    return last == ["listening"]


async def test_a_lost_service_gives_correct_errors(tmp_path: Path) -> None:
    """Streams of a killed orchestrator end with an error; after its restart, requests succeed."""
    with running_cluster(tmp_path, {"orchestrator": 1}) as cluster:
        oracle = Oracle()
        request = CompletionRequest(prompt="Water is", max_tokens=400)
        await oracle.learn(cluster.urls[0], [request])
        async with clients(cluster) as [client]:
            started = asyncio.Event()
            stream = asyncio.create_task(stream_completion(client, request, started=started))
            await started.wait()
            [node] = cluster.of("orchestrator")
            node.send(signal.SIGKILL)
            result = await stream
            oracle.check(request, result)
            assert result.error == "an upstream service is unreachable"
            refused = await stream_completion(client, request)
            assert refused.status == 503
            node.wait()
            node.start()
            await asyncio.to_thread(cluster.wait_ready)
            assert (await stream_completion(client, request)).text == oracle.texts[request]
            # A killed tokenizer: running streams continue, and new requests that need it are
            # refused; the orchestrator encodes short prompts itself.
            started = asyncio.Event()
            stream = asyncio.create_task(stream_completion(client, request, started=started))
            await started.wait()
            [tokenizer] = cluster.of("tokenizer")
            tokenizer.send(signal.SIGKILL)
            long = CompletionRequest(prompt="Water is wet. " * 40, max_tokens=4)
            refused = await stream_completion(client, long)
            assert refused.status == 503
            assert (await stream_completion(client, request)).text == oracle.texts[request]
            assert (await stream).text == oracle.texts[request]
            tokenizer.wait()
            tokenizer.start()
            await asyncio.to_thread(cluster.wait_ready)
            assert (await stream_completion(client, request)).complete
