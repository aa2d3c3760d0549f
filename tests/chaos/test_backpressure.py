"""Clients that do not read their streams, through all four processes."""

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
from tests.chaos.load import CompletionRequest, Oracle, stream_completion

NUM_STALLED = 8
REQUEST = CompletionRequest(prompt="Water is", max_tokens=24)
DEADLINE_SECONDS = 120

MAX_BYTES = 8 * 2**20
"""Maximum memory of a stalled stream in gateway and orchestrator together.

A chunk grows to 1,024 tokens, which are 2 MB of JSON with 20 top logprobs each, and 4 KiB as text.
"""

pytestmark = pytest.mark.timeout(900)

# With 20 top logprobs a token, a stream has megabytes, which exceed the sockets' buffers.
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
async def stalled_client(cluster: Cluster) -> AsyncIterator[socket.socket]:
    """Requests a long stream and reads nothing of it."""
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
    """Resident set size of a process in bytes."""
    assert node.process is not None
    pages = int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def num_streams(cluster: Cluster) -> int:
    """Number of active streams, from the gateway's metrics."""
    text = httpx.get(f"{cluster.urls[0]}/metrics", trust_env=False, timeout=10).text
    found = re.search(r"^gateway_num_streams_active (\S+)$", text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def num_finished(cluster: Cluster) -> int:
    """Number of long generations that the engine has finished, from its log."""
    records = cluster.of("inference")[0].records()
    return sum(record.get("completion_tokens") == LONG["max_tokens"] for record in records)


async def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Waits until `condition()` is true; fails after `seconds` with `what` in its message."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, f"never happened: {what}"
        await asyncio.sleep(0.2)


async def wait_engine_idle(cluster: Cluster) -> None:
    """Waits until the engine has no sequence; fails if KV blocks are still allocated."""
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


async def completion_seconds(client: httpx.AsyncClient, oracle: Oracle) -> float:
    """Duration of a completion of a client that reads; checks its text."""
    began = time.monotonic()
    result = await stream_completion(client, REQUEST)
    assert result.complete, result
    oracle.check(REQUEST, result)
    return time.monotonic() - began


async def test_a_stalled_client_affects_only_its_own_request(tmp_path: Path) -> None:
    """The engine finishes the sequences, other clients are served, and memory does not grow."""
    settings = {"GATEWAY_REQUEST_TIMEOUT_SECONDS": str(DEADLINE_SECONDS)}
    with running_cluster(tmp_path, {}, settings) as cluster:
        oracle = Oracle()
        await oracle.learn(cluster.urls[0], [REQUEST])
        relays = [*cluster.of("gateway"), *cluster.of("orchestrator")]
        async with httpx.AsyncClient(
            base_url=cluster.urls[0], timeout=DEADLINE_SECONDS, trust_env=False
        ) as client:
            alone = min([await completion_seconds(client, oracle) for _ in range(3)])
            before = sum(map(memory, relays))
            clients = [stalled_client(cluster) for _ in range(NUM_STALLED)]
            for each in clients:
                await each.__aenter__()
            await until(
                lambda: num_finished(cluster) >= NUM_STALLED, "the engine finishes all", 300
            )
            # The engine finishes the sequence of a client that does not read: its tokens wait in
            # one chunk, and its KV blocks are freed.
            await wait_engine_idle(cluster)
            beside = min([await completion_seconds(client, oracle) for _ in range(3)])
            assert beside < 5 * alone + 1
            grown = sum(map(memory, relays)) - before
            assert grown < NUM_STALLED * MAX_BYTES, f"{grown / 2**20:.0f} MiB more"
            await asyncio.sleep(2)
            assert sum(map(memory, relays)) - before - grown < 4 * 2**20, "memory still grows"
            for each in clients:
                await each.__aexit__(None, None, None)
            await until(lambda: num_streams(cluster) == 0, "the gateway ends the streams", 30)
            await completion_seconds(client, oracle)
