"""A load generator that reads many concurrent SSE streams with little CPU time.

It shares the cores with the services, so it does not parse the streams: it searches for the first
event, and for the usage in the last bytes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

END = b"0\r\n\r\n"
"""The last chunk of the chunked transfer coding."""
TAIL_BYTES = 1024
TIMEOUT_SECONDS = 600.0


@dataclass
class Stream:
    """Measurements of one stream; times are seconds from the sending of the request."""

    ttft: float = 0.0
    total: float = 0.0
    num_tokens: int = 0
    num_events: int = 0
    error: str = ""


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self._stream = Stream()
        self._tail = b""
        self._sent = 0.0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    async def read(
        self, request: bytes, num_tokens: int, usage: str = "completion_tokens"
    ) -> Stream:
        """Sends a request and reads the response to the end.

        `usage` is the field of the response that must have the number of tokens.
        """
        self._stream, self._tail = Stream(), b""
        self._done = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self.transport.write(request)
        await asyncio.wait_for(self._done, TIMEOUT_SECONDS)
        stream = self._stream
        stream.total = time.perf_counter() - self._sent
        if not stream.error and b'"%s":%d,' % (usage.encode(), num_tokens) not in self._tail:
            stream.error = f"the stream ended with {self._tail[-200:]!r}"
        stream.num_tokens = 0 if stream.error else num_tokens
        return stream

    @property
    def accepted(self) -> bool:
        """Whether any part of the response has arrived, such as the headers."""
        return bool(self._tail)

    def data_received(self, data: bytes) -> None:
        if not self._stream.ttft and b"data: " in data:
            self._stream.ttft = time.perf_counter() - self._sent
        self._stream.num_events += data.count(b"data: ")
        self._tail = data if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        if data.endswith(END) or (not self._stream.ttft and b"content-length" in data):
            self._end("" if self._stream.ttft else repr(data[:300]))

    def connection_lost(self, error: Exception | None) -> None:
        self._end("the connection was closed")

    def _end(self, error: str) -> None:
        if self._done is not None and not self._done.done():
            self._stream.error = error
            self._done.set_result(None)


Prompt = str | Sequence[int]
"""Text or token ids."""


def completion_request(
    url: str, num_tokens: int, prompt: Prompt = "Once upon a time", model: str = "demo"
) -> bytes:
    """An HTTP request for a streamed completion of exactly `num_tokens`, with usage."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


async def connect(url: str) -> Connection:
    """Opens a connection for sequential streams. The caller closes its `transport`."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, parts.hostname, parts.port)
    return connection


async def load(url: str, num_streams: int, num_tokens: int, turns: int = 1) -> list[Stream]:
    """Runs `num_streams` connections, each with `turns` streams one after another."""
    with ExitStack() as held:
        connections: list[Connection] = []
        for _ in range(num_streams):
            connection = await connect(url)
            held.callback(connection.transport.close)
            connections.append(connection)
        request = completion_request(url, num_tokens)

        async def client(connection: Connection) -> Sequence[Stream]:
            return [await connection.read(request, num_tokens) for _ in range(turns)]

        answers = await asyncio.gather(*map(client, connections))
    return [stream for streams in answers for stream in streams]
