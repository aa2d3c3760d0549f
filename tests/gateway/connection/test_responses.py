"""Responses: pipelined requests, clients that do not read, HTTP/1.0 and half-closed clients."""

from __future__ import annotations

import asyncio
import json
import select
import socket

import pytest

from gateway.connection import half_closed, protocol, refusal, uvicorn_server
from gateway.connection.limits import MAX_PIPELINED
from gateway.connection.protocol import WRITE_GRACE_SECONDS, LimitedProtocol
from gateway.http.server import GatewayServer
from tests.gateway.connection.raw import connected, exchange, num_connections, post, read_all
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import eventually

LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
HEAD_LIVE = LIVE.replace(b"GET", b"HEAD")
SEARCH = "/api/v1/search?query=x&streaming=true"
STREAM = f"GET {SEARCH} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
BODY = json.dumps({"prompt": "Hi"}).encode()
COMPLETION = post("/v1/completions", BODY)

pytestmark = pytest.mark.timeout(30)


# Pipelined requests


async def test_pipelined_requests_are_answered_in_order(gateway: GatewayServer) -> None:
    """As many as the limit; the connection stays open."""
    async with connected(gateway) as (reader, writer):
        for _ in range(2):
            writer.write(LIVE * MAX_PIPELINED)
            got = await reader.readexactly(len(await _one_answer(gateway)) * MAX_PIPELINED)
            assert got.count(b"HTTP/1.1 200 ") == MAX_PIPELINED


async def _one_answer(gateway: GatewayServer) -> bytes:
    got = await exchange(gateway, LIVE, half_close=True)
    return got.removeprefix(half_closed.PROBE).replace(b"connection: close\r\n", b"")


async def test_more_pipelined_requests_end_the_connection(
    gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """The waiting ones are answered, the rest is not parsed, and the stream is not broken."""
    orchestrator.script = Script(seconds_before_delta=0.05)
    got = await exchange(gateway, STREAM + LIVE * 5000)
    assert got.count(b"HTTP/1.1 200 ") == 1 + MAX_PIPELINED
    assert b"HTTP/1.1 4" not in got
    assert b"event: complete" in got


@pytest.mark.parametrize("after", [b"GARBAGE\r\n\r\n", b"GET / HT", b"\x00", b"x" * 100_000])
async def test_what_follows_a_request_does_not_break_its_stream(
    gateway: GatewayServer,
    orchestrator: FakeOrchestrator,
    monkeypatch: pytest.MonkeyPatch,
    after: bytes,
) -> None:
    """The refusal waits for the end of the stream, and is then the end of the connection."""
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_SECONDS", 0.1)
    gate = asyncio.Semaphore(1)
    orchestrator.script = Script(gate=gate)
    async with connected(gateway) as (reader, writer):
        writer.write(STREAM)
        got = await reader.readuntil(b"event: token")
        writer.write(after)
        [connection] = gateway._server.server_state.connections
        await eventually(lambda: connection._discarding, "the connection refuses it")  # type: ignore[union-attr]
        for _ in orchestrator.script.deltas:
            gate.release()
        got += await read_all(reader)
    assert got.count(b"HTTP/1.1 ") == 1
    assert b"event: complete" in got
    assert got.endswith(b"\r\n0\r\n\r\n")


async def test_a_disconnect_with_a_waiting_request_cancels_the_running_one(
    gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """The waiting request does not hide that the client has left."""
    orchestrator.script = Script(deltas="ab", seconds_before_delta=0.05, endless=True)
    async with connected(gateway) as (reader, writer):
        writer.write(STREAM + LIVE)
        await reader.readuntil(b"event: token")
    await eventually(lambda: orchestrator.num_running == 0, "the call upstream is cancelled")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")


# Clients that do not read


@pytest.fixture
def strict_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients must read after 0.3 s."""
    monkeypatch.setattr(protocol, "WRITE_GRACE_SECONDS", 0.3)
    monkeypatch.setattr(uvicorn_server, "TICK_SECONDS", 0.02)


def silent_reader(gateway: GatewayServer) -> socket.socket:
    """A connection with a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", gateway.port))
    client.setblocking(False)
    return client


@pytest.mark.parametrize("requests", [COMPLETION, COMPLETION * 3, COMPLETION[:-1]])
async def test_a_client_that_never_reads_its_response_is_aborted(
    strict_writes: None, gateway: GatewayServer, orchestrator: FakeOrchestrator, requests: bytes
) -> None:
    """Also if further requests wait, or its own request is incomplete when it is answered."""
    orchestrator.script = Script(deltas=["x" * 1_000_000], at_once=True)
    with silent_reader(gateway) as client:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, requests)
        if requests == COMPLETION[:-1]:
            await eventually(lambda: gateway.dependencies.drain.num_active == 1, "it waits")
            await loop.sock_sendall(client, b"}" + COMPLETION[:-1])
        await eventually(lambda: num_connections(gateway) == 1, "the client is connected")
        await eventually(lambda: num_connections(gateway) == 0, "the client is aborted")
        poll = select.poll()
        poll.register(client, select.POLLHUP)
        assert poll.poll(5000), "the client receives RST"
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "no request is left")


class StubTransport:
    """A transport with a buffer of a given size."""

    def __init__(self) -> None:
        self.buffered = 0
        self.aborted = False
        self.socket = socket.socket()

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self.socket

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("bytes_per_second", "is_aborted"), [(20_000, False), (10_000, True)])
def test_a_reader_must_keep_the_minimum_rate_after_the_first_seconds(
    bytes_per_second: int, is_aborted: bool
) -> None:
    """A response of 2 MB is read within 30 s and one more for each 16 KiB."""
    connection = LimitedProtocol.__new__(LimitedProtocol)
    transport = StubTransport()
    connection.transport = transport  # type: ignore[assignment]
    for now in range(120):
        transport.buffered = max(2_000_000 - now * bytes_per_second, 0)
        connection.check_reader(float(now))
        if now <= WRITE_GRACE_SECONDS:
            assert not transport.aborted
    assert transport.aborted == is_aborted
    transport.socket.close()


# HTTP/1.0


async def test_a_stream_to_an_http10_client_has_no_chunks(gateway: GatewayServer) -> None:
    """Its end is the end of the connection."""
    got = await exchange(gateway, STREAM.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    assert body.startswith(b"event: search_results\n")
    assert body.endswith(b"\n\n")


async def test_a_whole_response_to_an_http10_client_has_its_length(gateway: GatewayServer) -> None:
    """Also without a Host header, which HTTP/1.0 does not require."""
    request = COMPLETION.replace(b"HTTP/1.1\r\nhost: localhost", b"HTTP/1.0")
    head, _, body = (await exchange(gateway, request)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["choices"][0]["text"] == "Hello world"


# Half-closed connections


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_half_closed_request_is_answered(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, version: bytes
) -> None:
    """A client that sends FIN after its request still receives the response."""
    orchestrator.script = Script(seconds_before_first_event=0.05)
    for request in (LIVE, COMPLETION, STREAM):
        request = request.replace(b"HTTP/1.1", b"HTTP/" + version)
        got = await exchange(gateway, request, half_close=True)
        got = got.removeprefix(half_closed.PROBE) if version == b"1.1" else got
        assert got.startswith(b"HTTP/1.1 200 ")
        assert got.endswith((b"ok\n", b"}", b"\n\n", b"0\r\n\r\n"))
    await eventually(lambda: num_connections(gateway) == 0, "the connection is closed")


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_a_half_closed_client_that_leaves_cancels_its_request(
    gateway: GatewayServer,
    orchestrator: FakeOrchestrator,
    monkeypatch: pytest.MonkeyPatch,
    version: bytes,
) -> None:
    """Probes find the closed HTTP/1.1 client; an HTTP/1.0 client has a time limit."""
    monkeypatch.setattr(half_closed, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(half_closed, "UNPROBED_SECONDS", 0.05)
    orchestrator.script = Script(seconds_before_first_event=60)
    async with connected(gateway) as (reader, writer):
        writer.write(COMPLETION.replace(b"HTTP/1.1", b"HTTP/" + version))
        await eventually(lambda: orchestrator.num_running == 1, "the call arrives")
        writer.write_eof()
        if version == b"1.1":
            assert await reader.readexactly(len(half_closed.PROBE)) == half_closed.PROBE
            assert orchestrator.num_running == 1
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")


async def test_an_incomplete_half_closed_request_ends(gateway: GatewayServer) -> None:
    """Nothing more can arrive, so the connection is closed."""
    for request in (LIVE[:-2], COMPLETION[:-2]):
        assert await exchange(gateway, request, half_close=True) == b""
    await eventually(lambda: num_connections(gateway) == 0, "the connections are closed")


async def test_a_refusal_is_read_by_a_client_that_still_sends(gateway: GatewayServer) -> None:
    """The server discards what is in flight instead of destroying the refusal with RST."""
    async with connected(gateway) as (reader, writer):
        writer.write(b"GARBAGE\r\n\r\n" + b"x" * 100_000)
        await writer.drain()
        got = await read_all(reader)
        assert got == refusal.BAD_METHOD.response()


# Responses without a body


async def test_a_half_closed_head_request_is_answered(gateway: GatewayServer) -> None:
    """The end of the response is the end of the connection."""
    got = await exchange(gateway, HEAD_LIVE, half_close=True)
    assert got.removeprefix(half_closed.PROBE).startswith(b"HTTP/1.1 200 ")


async def test_a_head_request_is_answered_before_what_follows_is_refused(
    gateway: GatewayServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One response, and nothing is written after its end."""
    got = await exchange(gateway, HEAD_LIVE + b"GARBAGE\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ")
    assert got.count(b"HTTP/1.1 ") == 1
    assert "RuntimeError" not in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD_LIVE, b"200"),
        (STREAM.replace(b"\r\n\r\n", b"\r\nlast-event-id: complete\r\n\r\n"), b"204"),
    ],
)
async def test_a_head_alone_keeps_the_connection(
    gateway: GatewayServer, request_: bytes, status: bytes
) -> None:
    """Each request is answered, also the next one on the same connection."""
    async with connected(gateway) as (reader, writer), asyncio.timeout(10):
        for _ in range(2):
            writer.write(request_)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
