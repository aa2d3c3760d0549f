"""Limits on chunk extensions, trailers, slow bodies, and bodies that no one reads."""

from __future__ import annotations

import asyncio

import pytest

from gateway.connection import protocol
from gateway.connection.limits import (
    MAX_DISCARDED_BYTES,
    MAX_HEADER_BYTES,
    MAX_NUM_HEADERS,
    MAX_UNREAD_BYTES,
)
from gateway.http.server import GatewayServer
from gateway.validation import body as body_module
from tests.gateway.connection.raw import (
    chunked,
    connected,
    exchange,
    num_connections,
    post,
    send_until_closed,
)
from tests.helpers import eventually

CHUNKED = "transfer-encoding: chunked"
BODY = b'{"prompt":"Hi"}'
COMPLETION = "/v1/completions"
LIVE = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"

pytestmark = pytest.mark.timeout(30)

LARGE = [b"y" * 4096] * 64
FRAMINGS = {
    "endless trailer": [chunked(BODY, 4) + b"0\r\nx: ", *LARGE],
    "endless trailer name": [chunked(BODY, 4) + b"0\r\n", *LARGE],
    "many trailers": [chunked(BODY, 4) + b"0\r\n", b"x: y\r\n" * (MAX_NUM_HEADERS + 2)],
    "endless chunk extension": [chunked(BODY, 4) + b"1;x=", *LARGE],
    "a large extension of each chunk": [chunked(b" " * 64, 1, b";x=" + b"y" * 4096)],
}


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_chunk_extensions_and_trailers_are_limited(
    gateway: GatewayServer, framing: str
) -> None:
    """They are 431 for a request that waits for its body; after a response the connection ends."""
    for request in (post(COMPLETION, b"", CHUNKED), LIVE + b"transfer-encoding: chunked\r\n\r\n"):
        got = await exchange(gateway, request, *FRAMINGS[framing], pause=0.001)
        assert got.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 200 ")) or got == b""
        await eventually(lambda: num_connections(gateway) == 0, "the connection is closed")
    assert gateway.dependencies.drain.num_active == 0


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_small_chunks_and_trailers_are_read(gateway: GatewayServer, size: int) -> None:
    """A body in single bytes with short extensions is valid; trailers are not headers."""
    body = b'{"prompt":"%s"}' % (b"Hi" * 20_000 if size > 1 else b"Hi" * 500)
    framed = chunked(body, size, b";a=b") + b"0\r\nhost: evil\r\nx-request-id: evil\r\n\r\n"
    got = await exchange(gateway, post(COMPLETION, framed, CHUNKED, "connection: close"))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"evil" not in got


async def test_a_trailer_without_end_after_the_response_times_out(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Single bytes do not extend the time."""
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    async with connected(gateway) as (_, writer):
        writer.write(LIVE + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ")
        assert await send_until_closed(writer, b"y", pause=0.02) > 3


async def test_a_body_must_arrive_at_a_minimum_rate(
    gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client below the rate gets a 408; one above it has longer than the first seconds."""
    monkeypatch.setattr(body_module, "BODY_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(body_module, "MIN_BYTES_PER_SECOND", 2000)
    head = post(COMPLETION, b"", "content-length: 1015", "connection: close")
    slow = exchange(gateway, head, *[b" "] * 30, pause=0.02)
    steady = exchange(gateway, head, *[b" " * 100] * 10, BODY, pause=0.04)
    slow_answer, steady_answer = await asyncio.gather(slow, steady)
    assert slow_answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in slow_answer
    assert steady_answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("length", [2 * MAX_UNREAD_BYTES, 100_000_000])
async def test_a_body_after_a_response_is_not_read_to_its_end(
    gateway: GatewayServer, length: int
) -> None:
    """The response arrives, then the connection ends after a bounded number of bytes."""
    requests = {
        b"200": LIVE + b"content-length: %d\r\n\r\n" % length,
        b"404": post("/none", b"", f"content-length: {length}"),
        b"413": post(COMPLETION, b"", f"content-length: {max(length, 2_000_000)}"),
    }
    for status, request in requests.items():
        async with connected(gateway) as (reader, writer):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %s " % status)
            assert (b"connection: close" in head) == (status == b"413")
            # The kernel's buffers are included.
            assert await send_until_closed(writer, b"y" * 65536) < 2 * MAX_DISCARDED_BYTES
        await eventually(lambda: num_connections(gateway) == 0, "the connection is closed")


async def test_a_small_rest_of_a_body_keeps_the_connection(gateway: GatewayServer) -> None:
    """The rest is discarded and the next request is served."""
    async with connected(gateway) as (reader, writer):
        writer.write(post("/none", b"x" * 10, f"content-length: {MAX_HEADER_BYTES}"))
        assert (await reader.readuntil(b"}}")).startswith(b"HTTP/1.1 404 ")
        writer.write(b"y" * (MAX_HEADER_BYTES - 10) + LIVE + b"\r\n")
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_bad_chunk_is_400_at_once(gateway: GatewayServer) -> None:
    """The request that waits for the body ends."""
    begin = post(COMPLETION, chunked(BODY, 4), CHUNKED)
    got = await exchange(gateway, begin, b"zz\r\n", pause=0.05)
    assert got.startswith(b"HTTP/1.1 400 ")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")


async def test_a_body_that_the_method_does_not_take_is_limited(gateway: GatewayServer) -> None:
    """A GET whose body never ends does not occupy a search."""
    request = (
        LIVE.replace(b"/livez", b"/api/v1/search?query=x") + b"content-length: 9999999\r\n\r\n"
    )
    got = await exchange(gateway, request, *[b"y" * 65536] * 20)
    assert got.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 200 ")) or got == b""
    await eventually(lambda: num_connections(gateway) == 0, "the connection is closed")
