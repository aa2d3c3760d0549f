"""Random raw requests: valid ones, and ones that are cut, smuggled, upgraded or too large."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from tests.gateway.connection.raw import chunked

BODY = json.dumps({"prompt": "Hi", "max_tokens": 3}).encode()
STREAM = json.dumps({"prompt": "Hi", "stream": True}).encode()
CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
GETS = ("/livez", "/", "/v1/models", "/none", "/api/v1/search?query=x&streaming=true", "/metrics")
POSTS = ("/v1/completions", "/v1/chat/completions", "/api/v1/validate", "/livez", "/none")
END = b"\r\n\r\n"


def get(random: Random) -> bytes:
    """A request without a body."""
    version = random.choice((b"1.1", b"1.1", b"1.0"))
    return b"GET %s HTTP/%s\r\nhost: localhost\r\n\r\n" % (random.choice(GETS).encode(), version)


def post(random: Random, *headers: bytes) -> bytes:
    """A request with a body, in one piece or in chunks."""
    body = random.choice((BODY, STREAM, CHAT, b"{", b"[]", b""))
    lines = [b"POST %s HTTP/1.1" % random.choice(POSTS).encode(), b"host: localhost", *headers]
    if random.random() < 0.5:
        lines.append(b"content-length: %d" % len(body))
        return b"\r\n".join(lines) + END + body
    lines.append(b"transfer-encoding: chunked")
    framed = chunked(body, random.randint(1, 20), random.choice((b"", b";a", b';a="b"')))
    return (
        b"\r\n".join(lines) + END + framed + b"0\r\n" + random.choice((b"", b"x: y\r\n")) + b"\r\n"
    )


def smuggled(random: Random) -> bytes:
    """Contradictory or malformed framing, with a second request in the body."""
    framing = random.choice(
        (
            b"content-length: 5\r\ntransfer-encoding: chunked",
            b"content-length: 5\r\ncontent-length: 50",
            b"content-length: 5, 5",
            b"content-length: -5",
            b"content-length: +5",
            b"content-length: 99999999999999999999999",
            b"content-length : 5",
            b"transfer-encoding: chunked, identity",
            b"transfer-encoding: gzip, chunked",
            b"transfer-encoding: \x0bchunked",
            b"transfer-encoding:\r\n chunked",
            b"transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            b"x: y\ncontent-length: 5",
            b"x: \x00\r\ncontent-length: 5",
            b"host: other\r\ncontent-length: 5",
        )
    )
    target = random.choice(
        (b"/v1/completions", b"http://evil.example/livez", b"*", b"//x", b"/%zz")
    )
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\n%s" % (target, framing)
    return head + END + random.choice((b"0\r\n\r\n", b"5\r\nhello\r\n", b"hello")) + get(random)


def upgraded(random: Random) -> bytes:
    """An offer to upgrade, or HTTP/2 without one."""
    protocol = random.choice((b"h2c", b"websocket", b"TLS/1.2, HTTP/1.1", b"x" * 500))
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: " + protocol)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.randbytes(40)
    return random.choice((post(random, *offer), post(random, *offer) * 8, preface))


def extended(random: Random) -> bytes:
    """Long chunk extensions or trailers; some have no end."""
    head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    size = random.choice((10, 1000, 40_000, 300_000))
    tail = random.choice(
        (
            b"1;" + b"e" * size,
            chunked(b"{}" * 50, 1, b";" + b"e" * (size // 50)) + b"0\r\n\r\n",
            b"0\r\nx: " + b"y" * size,
            b"0\r\n" + b"x: y\r\n" * (size // 6) + b"\r\n",
            b"0\r\n" + b"x" * size,
            b"1\r\n \r\n" * size,
        )
    )
    return head % random.choice(POSTS).encode() + tail


def oversized(random: Random) -> bytes:
    """A large target, header, number of headers, or body."""
    size = random.choice((10_000, 40_000, 500_000))
    return random.choice(
        (
            b"GET /" + b"a" * size + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * size + END,
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * (size // 6) + b"\r\n",
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999999\r\n\r\n"
            + b"a" * size,
            b"POST /none HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999999\r\n\r\n"
            + b"a" * size,
        )
    )


def pipelined(random: Random) -> bytes:
    """Many requests at once."""
    return get(random) * random.choice((2, 16, 17, 5000)) + post(random)


def mutated(random: Random) -> bytes:
    """A request with some random bytes in it."""
    data = bytearray(random.choice((get, post))(random))
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def noise(random: Random) -> bytes:
    """Bytes that are not HTTP, or only line ends."""
    return random.choice((random.randbytes(300), b"\r\n" * 2000, b"\x16\x03\x01" + b"\x00" * 200))


KINDS: dict[str, Callable[[Random], bytes]] = {
    each.__name__: each
    for each in (get, post, smuggled, upgraded, extended, oversized, pipelined, mutated, noise)
}
