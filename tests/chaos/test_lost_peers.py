"""Frozen processes, dropped packets and hung steps, under the load of other clients."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mesh.rpc.transport import KEEPALIVE_SECONDS, KEEPALIVE_TIMEOUT_SECONDS
from tests.chaos.cluster import FAKE, READY_SECONDS, Cluster, Node, running_cluster
from tests.chaos.load import CompletionRequest, CompletionResult, stream_completion
from tests.chaos.network import namespace
from tests.chaos.test_faults import wait_idle

PROMISED_SECONDS = 15.0
"""Within this time the streams of a lost peer continue, or end with an error."""

QUICK_SECONDS = 0.6
"""Interval and timeout of keepalive pings in the short form."""

NUMBERS = {"tokenizer": 2, "inference": 2, "orchestrator": 2, "gateway": 2}
SPEED = 40
SETTINGS = {**FAKE, "INFERENCE_FAKE_TOKENS_PER_SECOND": str(SPEED)}

NUM_STREAMS = 8
NUM_CLIENTS = 4
UNDISTURBED_SECONDS = 1.0
"""Longest time to the first text of a request that no lost peer has."""

LISTENING = "listening"

SHORT = CompletionRequest(prompt="Light is", max_tokens=2)
MISTAKES: Sequence[dict[str, object]] = (
    {"temperature": 9},
    {"max_tokens": 10**6},
    {"logit_bias": {"999999": 1}},
    {"prompt": ""},
)

pytestmark = pytest.mark.timeout(600)

Action = Callable[[], object]


class OtherClients:
    """Clients in closed loops, each with short requests, and one that makes mistakes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.results: list[CompletionResult] = []
        self._running = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OtherClients]:
        """Runs them inside the block."""
        self._running = True
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(NUM_CLIENTS):
                tasks.create_task(self._send(client))
            tasks.create_task(self._make_mistakes(client))
            try:
                yield self
            finally:
                self._running = False

    async def _send(self, client: httpx.AsyncClient) -> None:
        while self._running:
            self.results.append(await stream_completion(client, SHORT))
            await asyncio.sleep(0.05)

    async def _make_mistakes(self, client: httpx.AsyncClient) -> None:
        """Invalid requests, and requests whose client leaves at once."""
        number = 0
        while self._running:
            number += 1
            body = {**SHORT.body, **MISTAKES[number % len(MISTAKES)]}
            response = await client.post("/v1/completions", json=body)
            assert response.status_code in (200, 400, 503), response.text
            with contextlib.suppress(httpx.TimeoutException):
                await client.post("/v1/completions", json=LONG_BODY, timeout=0.1)
            await asyncio.sleep(0.2)


LONG_BODY = CompletionRequest(prompt="Bread is", max_tokens=1000).body


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(seconds)[int(0.99 * (len(seconds) - 1))]


@asynccontextmanager
async def long_streams(
    urls: Sequence[str], max_tokens: int
) -> AsyncIterator[list[asyncio.Task[CompletionResult]]]:
    """Streams of one prompt over these gateways, all of which have begun."""
    request = CompletionRequest(prompt="Water is", max_tokens=max_tokens)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
            )
            for url in urls
        ]
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(
                stream_completion(clients[number % len(clients)], request, started=event)
            )
            for number, event in enumerate(started)
        ]
        await asyncio.gather(*(event.wait() for event in started))
        yield streams
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def lose_peer(
    cluster: Cluster,
    node: Node,
    lose: Action,
    restore: Action,
    bound: float,
    max_tokens: int | None = None,
) -> None:
    """Loses a peer during streams and under load, and checks every bound."""
    urls = [f"http://{each.address}" for each in cluster.of("gateway") if each is not node]
    begins = {each: len(each.log.read_text()) for each in cluster.nodes}
    max_tokens = max_tokens or round(SPEED * bound)
    quiet, disturbed = OtherClients(urls[-1]), OtherClients(urls[-1])
    async with long_streams(urls, max_tokens), quiet.running():
        await asyncio.sleep(max(1.5, bound / 3))
    try:
        async with long_streams(urls, max_tokens) as streams, disturbed.running():
            lose()
            results = await asyncio.gather(*streams)
    finally:
        restore()
    check_streams(node, results, bound)
    check_other_clients(quiet.results, disturbed.results, bound)
    assert lost_replicas(cluster, node, begins) <= {node.address}, "lost for a client's mistake"
    await check_everything_works(cluster)


def lost_replicas(cluster: Cluster, peer: Node, begins: dict[Node, int]) -> set[str]:
    """Addresses of the engines that orchestrators other than `peer` have marked as lost.

    `begins` are the lengths of the logs before the fault.
    """
    return {
        record["address"]
        for each in cluster.of("orchestrator")
        if each is not peer
        for record in each.records(begins[each])
        if "replica lost" in record["message"]
    }


def check_streams(node: Node, results: Sequence[CompletionResult], bound: float) -> None:
    """Each continues within the bound with the same text; only an orchestrator's may end."""
    texts = {result.text for result in results if result.complete}
    assert len(texts) == 1, "texts differ"
    [text] = texts
    print(node.service, "pauses:", sorted(round(result.longest_pause, 1) for result in results))
    for result in results:
        assert result.longest_pause <= bound, result
        if node.service == "orchestrator":
            assert result.complete or result.error == "an upstream service is unreachable", result
            assert text.startswith(result.text)
        else:
            assert result.complete, result


def check_other_clients(
    quiet: Sequence[CompletionResult], disturbed: Sequence[CompletionResult], bound: float
) -> None:
    """Each client is caught by the lost peer once; p99 TTFT of the rest is twice that of before."""
    assert [each for each in disturbed if not each.complete] == []
    before = p99([result.ttft for result in quiet])
    limit = 2 * before + 0.05
    slow = sorted(result.ttft for result in disturbed if result.ttft > limit)
    print(
        f"p99 TTFT {1000 * before:.0f} ms quiet ({len(quiet)}), over {1000 * limit:.0f} ms: "
        f"{[round(seconds, 1) for seconds in slow]} of {len(disturbed)}"
    )
    assert len(slow) <= NUM_CLIENTS + math.ceil(len(disturbed) / 100)
    assert max(slow, default=0.0) <= bound


async def check_everything_works(cluster: Cluster) -> None:
    """All gateways answer, and no engine has a sequence or a block left."""
    await asyncio.to_thread(cluster.wait_ready)
    for url in cluster.urls:
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            result = await stream_completion(client, SHORT)
            assert result.complete, result
    for each in cluster.of("inference"):
        await wait_idle(each.address)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two of each service, with the fake engine."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), NUMBERS, SETTINGS) as cluster:
        yield cluster


@pytest.mark.parametrize("service", ["inference", "tokenizer", "orchestrator"])
async def test_streams_of_a_frozen_process_continue(cluster: Cluster, service: str) -> None:
    """SIGSTOP: its connections stay open, and the kernel acknowledges what is sent to it."""
    node = cluster.of(service)[0]
    await lose_peer(
        cluster,
        node,
        lambda: node.send(signal.SIGSTOP),
        lambda: node.send(signal.SIGCONT),
        PROMISED_SECONDS,
    )


async def test_a_frozen_gateway_holds_no_engine(cluster: Cluster) -> None:
    """The services cancel its requests, and the other gateway does not notice."""
    frozen = cluster.of("gateway")[0]
    await lose_gateway(
        cluster, lambda: frozen.send(signal.SIGSTOP), lambda: frozen.send(signal.SIGCONT)
    )


async def test_a_partitioned_gateway_holds_no_engine(tmp_path: Path) -> None:
    """All packets from and to it are dropped."""
    with namespace() as apart:
        context = running_cluster(tmp_path, NUMBERS, SETTINGS, apart=("gateway", apart))
        cluster = await asyncio.to_thread(context.__enter__)
        try:
            await lose_gateway(cluster, apart.cut, apart.heal)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


async def lose_gateway(cluster: Cluster, lose: Action, restore: Action) -> None:
    """Loses the first gateway during streams, and checks that they end in the engines."""
    lost, other = cluster.of("gateway")
    disturbed = OtherClients(f"http://{other.address}")
    async with long_streams([f"http://{lost.address}"], max_tokens=4000):
        lose()
        began = time.monotonic()
        try:
            async with disturbed.running():
                await asyncio.sleep(1)
            for engine in cluster.of("inference"):
                await wait_idle(engine.address)
            assert time.monotonic() - began <= PROMISED_SECONDS
        finally:
            restore()
    assert all(result.complete for result in disturbed.results)
    assert max(result.ttft for result in disturbed.results) < UNDISTURBED_SECONDS
    await check_everything_works(cluster)


@pytest.mark.parametrize("service", ["inference", "tokenizer", "orchestrator"])
async def test_streams_of_a_partitioned_process_continue(tmp_path: Path, service: str) -> None:
    """All packets of one process are dropped, in both directions, and later arrive again."""
    with namespace() as apart:
        context = running_cluster(tmp_path, NUMBERS, SETTINGS, apart=(service, apart))
        cluster = await asyncio.to_thread(context.__enter__)
        try:
            node = cluster.of(service)[0]
            await lose_peer(cluster, node, apart.cut, apart.heal, PROMISED_SECONDS)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)


async def test_streams_of_a_hung_step_continue(tmp_path: Path) -> None:
    """The real engine: health and connection of its process are good. Then the process ends."""
    hang = tmp_path / "hang"
    hang.mkdir()
    settings = {"INFERENCE_STEP_TIMEOUT_SECONDS": "2", "CHAOS_HANG_FOLDER": str(hang)}
    with running_cluster(tmp_path, NUMBERS, settings) as cluster:
        node = cluster.of("inference")[0]

        def restore() -> None:
            assert node.wait(60) != 0
            (hang / node.address).unlink()
            start_again(node)

        await lose_peer(
            cluster, node, (hang / node.address).touch, restore, PROMISED_SECONDS, max_tokens=1600
        )
        assert "step does not return" in node.log.read_text()


def start_again(node: Node) -> None:
    """Starts a process that has ended, and waits until it listens."""
    num_before = node.num_messages(LISTENING)
    node.start()
    end = time.monotonic() + READY_SECONDS
    while node.num_messages(LISTENING) == num_before:
        assert time.monotonic() < end, node.log.read_text()[-3000:]
        time.sleep(0.1)


async def test_short_frozen_processes(tmp_path: Path) -> None:
    """The short form: quicker pings, and one process of a service that the seed chooses."""
    seed = int(os.environ.get("SEED") or 1)
    service = random.Random(seed).choice(["inference", "tokenizer", "orchestrator"])
    print(f"seed {seed}: {service}")
    settings = {**SETTINGS, "CHAOS_KEEPALIVE_SECONDS": str(QUICK_SECONDS)}
    with running_cluster(tmp_path, {service: 2}, settings) as cluster:
        node = cluster.of(service)[0]
        margin = PROMISED_SECONDS - KEEPALIVE_SECONDS - KEEPALIVE_TIMEOUT_SECONDS
        await lose_peer(
            cluster,
            node,
            lambda: node.send(signal.SIGSTOP),
            lambda: node.send(signal.SIGCONT),
            2 * QUICK_SECONDS + margin,
            max_tokens=round(SPEED * (2 * QUICK_SECONDS + 1)),
        )
