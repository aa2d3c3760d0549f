"""Limits on the size and the time of request headers, and heads that are not valid."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.connection import protocol
from gateway.connection.limits import MAX_HEADER_BYTES, MAX_NUM_HEADERS
from gateway.http.server import GatewayServer
from tests.gateway.connection.raw import exchange, num_connections, send_until_closed
from tests.helpers import eventually

POST = b"POST /livez HTTP/1.1\r\nhost: localhost\r\n"
HEAD = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_SECONDS", 0.3)


async def test_an_endless_header_is_rejected(gateway: GatewayServer) -> None:
    """A header without an end is a 431, and the connection is closed."""
    endless = [HEAD + b"x: ", *[b"y" * 4096] * 40]
    got = await exchange(gateway, *endless)
    assert got.startswith(b"HTTP/1.1 431 ") or got == b""  # the reset may arrive first
    await eventually(lambda: num_connections(gateway) == 0, "the connection is closed")


@pytest.mark.parametrize(
    "headers",
    [
        b"".join(b"h%d: v\r\n" % number for number in range(MAX_NUM_HEADERS)),
        b"x: " + b"y" * MAX_HEADER_BYTES + b"\r\n",
        b"".join(b"h%d: %s\r\n" % (number, b"v" * 1000) for number in range(40)),
    ],
)
async def test_too_many_or_too_large_headers_are_431(
    gateway: GatewayServer, headers: bytes
) -> None:
    """The body is the gateway's error format, and the connection is closed."""
    got = await exchange(gateway, HEAD + headers + b"\r\n")
    assert got.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"headers_too_large"' in got


async def test_refusals_of_the_messages_api_have_anthropics_form(gateway: GatewayServer) -> None:
    """As far as the request's target has arrived when it is refused."""
    head = b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: localhost\r\n"
    got = await exchange(gateway, head + b"x: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 431 ")
    assert b'{"type":"error","error":{"type":"invalid_request_error","message":"request' in got


async def test_headers_within_the_limits_are_served(gateway: GatewayServer) -> None:
    """Headers just below the limit, sent in pieces."""
    headers = b"".join(b"h%d: v\r\n" % number for number in range(MAX_NUM_HEADERS - 2))
    last = b"connection: close\r\n\r\n"
    got = await exchange(gateway, HEAD, headers[:100], headers[100:], last, pause=0.01)
    assert got.startswith(b"HTTP/1.1 200 ")


async def test_bytes_that_are_not_http_are_400(gateway: GatewayServer) -> None:
    """A TLS handshake included; the body is the gateway's error format."""
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n"):
        got = await exchange(gateway, garbage)
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"bad_request"' in got


async def test_slow_headers_time_out(short: None, gateway: GatewayServer) -> None:
    """A client that sends byte by byte gets a 408; a silent connection is closed."""
    started = time.monotonic()
    slow, silent = await asyncio.gather(
        exchange(gateway, *[bytes([byte]) for byte in HEAD[:4]], pause=0.05), exchange(gateway)
    )
    assert slow.startswith(b"HTTP/1.1 408 ")
    assert silent == b""
    assert time.monotonic() - started < 8
    await eventually(lambda: num_connections(gateway) == 0, "both are closed")


async def test_a_second_request_has_the_same_header_timeout(
    short: None, gateway: GatewayServer
) -> None:
    """The timeout starts with its first byte; until then the idle timeout applies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(HEAD + b"\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(0.6)
    assert num_connections(gateway) == 1
    writer.write(b"GET /")
    async with asyncio.timeout(10):
        rest = await reader.read()
    assert b"HTTP/1.1 408 " in rest
    writer.close()


async def test_line_ends_do_not_keep_an_idle_connection(
    short: None, gateway: GatewayServer
) -> None:
    """Empty lines before a request are allowed, but the header timeout starts with the first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(HEAD + b"\r\n")
    assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
    assert await send_until_closed(writer, b"\r\n", pause=0.05) > 2
    writer.close()


HEADS = [
    (b"GET /livez HTTP/1.1\r\n", 400, "exactly one Host header"),
    (b"GET /livez HTTP/1.1\r\nhost: a\r\nhost: a\r\n", 400, "exactly one Host header"),
    (b"GET /livez HTTP/1.0\r\nhost: a\r\nhost: b\r\n", 400, "exactly one Host header"),
    (b"GET /livez HTTP/1.0\r\n", 200, "ok"),
    (b"GET /livez HTTP/2.0\r\nhost: a\r\n", 505, "HTTP/1.1 or HTTP/1.0"),
    (b"GET /livez\r\n", 505, "HTTP/1.1 or HTTP/1.0"),
    (b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n", 400, "not a proxy"),
    ("GET /livez?q=\xe9 HTTP/1.1\r\nhost: a\r\n".encode(), 400, "percent-encode"),
    (POST + b"transfer-encoding: gzip, chunked\r\n", 501, "chunked"),
    (POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", 400, "not be given together"),
    (POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n", 400, "not be given together"),
    (
        POST + b"content-length: 5\r\ncontent-length: 5\r\n",
        400,
        "Content-Length must be given once",
    ),
    (POST + b"content-length: 5, 5\r\n", 400, "Content-Length must be a decimal number"),
    (POST + b"content-length: -5\r\n", 400, "Content-Length must be a decimal number"),
    (POST + b"content-length:\r\n", 400, "Content-Length must be a decimal number, given none"),
    (POST + b"content-length: 99999999999999999999999\r\n", 400, "less than 2^64"),
    (POST + b"transfer-encoding: chunked, identity\r\n", 400, "Transfer-Encoding must be chunked"),
    (POST + b"content-length : 5\r\n", 400, "the header after host must have a name of letters"),
    (POST + b"x: a\r\n b\r\n", 400, "the header after host must be on one line: folding"),
    (POST + b"x: a\r\ny: \x00\r\n", 400, "the header after x must have no control characters"),
    (POST + b"x: a\ny: b\r\n", 400, "the header after host must end with CRLF"),
    (b"GET / HTTP/1.1\r\n: x\r\n", 400, "the first header must have a name of letters"),
    (b"BREW /coffee HTTP/1.1\r\nhost: localhost\r\n", 400, "HTTP's methods in capitals"),
    (b"get / HTTP/1.1\r\nhost: localhost\r\n", 400, "HTTP's methods in capitals"),
    (b"GET / HTTP/7.1\r\nhost: localhost\r\n", 505, "HTTP/1.1 or HTTP/1.0"),
]


async def test_heads_that_http_does_not_allow(gateway: GatewayServer) -> None:
    """Each has its status, a message, and the end of the connection."""
    for head, status, message in HEADS:
        got = await exchange(gateway, head + b"connection: close\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 %d " % status), head
        assert message.encode() in got, head
