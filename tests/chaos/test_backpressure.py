"""Clients that do not read, through all four real processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from mesh.rpc.channel import call_unary, open_channel
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.chaos.cluster import Cluster, Node, running_cluster
from tests.chaos.load import Oracle, Question, ask

NUM_STALLED = 8
QUESTION = Question(prompt="Water is", max_tokens=24)
DEADLINE_SECONDS = 120

MAX_BYTES = 8 * 2**20
"""What a stalled stream may hold in gateway and orchestrator together. A chunk grows to 1,024
tokens, which with twenty alternatives each are two megabytes of JSON; as text they are four KiB."""

pytestmark = pytest.mark.timeout(900)

# With twenty alternatives a token each stream is megabytes: more than sockets hold by themselves.
LONG = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Water is"}],
    "max_tokens": 1800,
    "temperature": 0,
    "ignore_eos": True,
    "logprobs": True,
    "top_logprobs": 20,
    "stream": True,
}


@asynccontextmanager
async def stalled(cluster: Cluster) -> AsyncIterator[socket.socket]:
    """A client that asks for a long stream and reads nothing of it."""
    [node] = cluster.of("gateway")
    host, _, port = node.address.rpartition(":")
    body = json.dumps(LONG).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, head.encode() + b"\r\n\r\n" + body)
        yield client


def memory(node: Node) -> int:
    """Resident bytes of a process."""
    assert node.process is not None
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_streams(cluster: Cluster) -> int:
    """Streams that the gateway holds now, by its own count."""
    text = httpx.get(f"{cluster.urls[0]}/metrics", trust_env=False, timeout=10).text
    found = re.search(r"^gateway_num_streams_active (\S+)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def num_finished(cluster: Cluster) -> int:
    """Long generations that have ended in the engine, by its own log."""
    log = cluster.of("inference")[0].log.read_text()
    return log.count(f'"completion_tokens": {LONG["max_tokens"]}')


async def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Waits for something that other processes do."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"never happened: {what}"
        await asyncio.sleep(0.2)


async def engine_is_free(cluster: Cluster) -> None:
    """The engine has finished all that it was asked for, and holds no block."""
    channel = open_channel(cluster.of("inference")[0].address)
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                load = await call_unary(stub.GetLoad, inference_pb2.GetLoadRequest(), 10)
                if not (load.num_requests_running or load.num_requests_waiting):
                    assert load.kv_cache_usage == 0
                    return
                await asyncio.sleep(0.2)
    finally:
        await channel.close()


async def seconds_of(client: httpx.AsyncClient, oracle: Oracle) -> float:
    """How long a client that reads waits for its answer, which must be right."""
    began = time.monotonic()
    answer = await ask(client, QUESTION)
    assert answer.complete, answer
    oracle.check(QUESTION, answer)
    return time.monotonic() - began


async def test_who_does_not_read_holds_only_its_own_request(tmp_path: Path) -> None:
    """The engine finishes their sequences and goes on; others are served; memory stays flat."""
    settings = {"GATEWAY_REQUEST_TIMEOUT_SECONDS": str(DEADLINE_SECONDS)}
    with running_cluster(tmp_path, {}, settings) as cluster:
        oracle = Oracle()
        await oracle.learn(cluster.urls[0], [QUESTION])
        relays = [*cluster.of("gateway"), *cluster.of("orchestrator")]
        async with httpx.AsyncClient(
            base_url=cluster.urls[0], timeout=DEADLINE_SECONDS, trust_env=False
        ) as client:
            alone = min([await seconds_of(client, oracle) for _ in range(3)])
            before = sum(map(memory, relays))
            clients = [stalled(cluster) for _ in range(NUM_STALLED)]
            for each in clients:
                await each.__aenter__()
            await until(lambda: num_finished(cluster) >= NUM_STALLED, "they end in the engine", 300)
            # By policy the engine finishes a sequence whose client does not read: its tokens wait
            # as one chunk, and its place and its blocks are free for others.
            await engine_is_free(cluster)
            beside = min([await seconds_of(client, oracle) for _ in range(3)])
            assert beside < 5 * alone + 1
            grown = sum(map(memory, relays)) - before
            assert grown < NUM_STALLED * MAX_BYTES, f"{grown / 2**20:.0f} MiB more"
            await asyncio.sleep(2)
            assert sum(map(memory, relays)) - before - grown < 4 * 2**20, "memory still grows"
            for each in clients:
                await each.__aexit__(None, None, None)
            await until(lambda: num_streams(cluster) == 0, "the gateway lets them go", 30)
            await seconds_of(client, oracle)
