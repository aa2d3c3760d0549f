"""Clients that disconnect, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.http.server import GatewayServer
from tests.gateway.conftest import StartGateway, client_of, open_multiplexed
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import eventually

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
REQUESTS = {
    "search stream": ("GET", "/api/v1/search?query=AI&streaming=true", None),
    "search": ("GET", "/api/v1/search?query=AI", None),
    "chat stream": ("POST", "/v1/chat/completions", {**CHAT, "stream": True}),
    "chat": ("POST", "/v1/chat/completions", CHAT),
    "responses stream": ("POST", "/v1/responses", {"input": "Hi", "stream": True}),
    "responses": ("POST", "/v1/responses", {"input": "Hi"}),
    "completion stream": ("POST", "/v1/completions", {"prompt": "Hi", "stream": True}),
    "completion": ("POST", "/v1/completions", {"prompt": "Hi"}),
}
STREAMS = [name for name in REQUESTS if name.endswith("stream")]


@asynccontextmanager
async def connection(
    server: GatewayServer, name: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a socket and send a request; close the socket at the end of the block."""
    method, path, body = REQUESTS[name]
    content = b"" if body is None else json.dumps(body).encode()
    limit = 8192 if name.startswith("responses") else 1024  # their first events are longer
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=limit)
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_disconnect_before_the_first_event_cancels(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """A disconnect while the client waits cancels the upstream call immediately."""
    orchestrator.script = Script(seconds_before_first_event=60)
    async with connection(gateway, name):
        await eventually(lambda: orchestrator.num_running == 1, "the call arrives")
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")


@pytest.mark.parametrize("name", STREAMS)
async def test_a_mid_stream_disconnect_cancels(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """A disconnect cancels the upstream call immediately, also while no token arrives."""
    orchestrator.script = Script(deltas="ab", seconds_before_delta=0.05, endless=True)
    async with connection(gateway, name) as (reader, _):
        await reader.readuntil(b"b")
        orchestrator.script.seconds_before_delta = 60
        await asyncio.sleep(0.1)
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")


async def test_a_disconnect_is_logged_as_499(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    """The access log line has status 499, and nothing is logged as a warning or an error."""
    caplog.set_level(logging.INFO)
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with connection(gateway, "search stream") as (reader, _):
        await reader.readuntil(b"event: token")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")
    [line] = [record for record in caplog.records if record.name == "gateway.access"]
    assert line.status == 499  # type: ignore[attr-defined]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("name", STREAMS)
async def test_the_access_line_of_an_abandoned_stream_has_its_usage(
    gateway: GatewayServer,
    orchestrator: FakeOrchestrator,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    """Tokens sent before the disconnect are logged; a search has no prompt tokens yet."""
    caplog.set_level(logging.INFO)
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with connection(gateway, name) as (reader, _):
        await reader.readuntil(b':"b"')
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")
    [line] = [vars(record) for record in caplog.records if record.name == "gateway.access"]
    assert line["completion_tokens"] >= 2
    assert line.get("prompt_tokens") == (None if name == "search stream" else 7)
    assert line["ttft_seconds"] > 0
    assert "finish_reason" not in line


@pytest.mark.parametrize("name", ["search stream", "completion stream"])
async def test_a_slow_client_blocks_only_its_own_request(
    gateway: GatewayServer, client: httpx.AsyncClient, orchestrator: FakeOrchestrator, name: str
) -> None:
    """Backpressure stops its producer, buffers stay bounded, other requests continue."""
    await open_multiplexed(gateway)
    orchestrator.script = Script(deltas=["x" * 1000], endless=True)
    async with connection(gateway, name) as (_, writer):
        stalled = -1
        async with asyncio.timeout(20):
            while stalled != orchestrator.num_sent:
                stalled = orchestrator.num_sent
                await asyncio.sleep(0.4)
        # Socket buffers, HTTP/2 windows and two chunks of the gateway: a few megabytes at most.
        assert stalled * 1000 < 16_000_000
        orchestrator.script = Script()
        response = await client.get("/api/v1/search?query=AI&streaming=true")
        assert response.text.count("event: token") == 3
        assert orchestrator.num_sent == stalled + 3
        writer.transport.abort()
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")


async def test_a_slow_client_is_disconnected_at_its_deadline(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """The deadline ends the request of a client that reads nothing."""
    orchestrator.script = Script(deltas=["x" * 10_000], endless=True)
    async with (
        start_gateway(request_timeout_seconds=1) as server,
        connection(server, "chat stream"),
    ):
        await eventually(lambda: orchestrator.num_running == 1, "the call arrives")
        drain = server.dependencies.drain
        await eventually(lambda: drain.num_active == 0, "the request ends", 6.0)
        assert orchestrator.num_running == 0


async def test_many_disconnects_leave_no_running_request(
    gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """Fifty clients disconnect at different times; every request and call ends."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.005)

    async def disconnect_after(seconds: float) -> None:
        async with connection(gateway, "chat stream"):
            await asyncio.sleep(seconds)

    await asyncio.gather(*(disconnect_after(number / 100) for number in range(50)))
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "requests end")
    await eventually(lambda: orchestrator.num_running == 0, "calls end")


async def test_a_client_that_pauses_gets_the_whole_stream(
    gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """After a pause in reading the whole stream arrives, in order and complete."""
    orchestrator.script = Script(deltas=[f"<{number}>" * 20 for number in range(3000)])
    async with connection(gateway, "search stream") as (reader, _), asyncio.timeout(20):
        await asyncio.sleep(0.5)
        received = b""
        while b"event: complete" not in received[-4000:]:
            received += await reader.read(65536)
    tokens = [line for line in received.split(b"\n") if re.fullmatch(rb"id: \d+", line)]
    assert tokens == [f"id: {number}".encode() for number in range(3000)]


async def test_a_disconnect_while_sending_the_body(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """An incomplete body ends the request, and nothing is sent upstream."""
    async with start_gateway() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        )
        await eventually(lambda: server.dependencies.drain.num_active == 1, "the request arrives")
        writer.close()
        await eventually(lambda: server.dependencies.drain.num_active == 0, "the request ends")
        assert orchestrator.requests == []
        async with client_of(server) as client, asyncio.timeout(30):
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
