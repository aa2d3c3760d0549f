"""A fake search engine: an HTTP server with a scripted response that records its requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit


@dataclass(kw_only=True)
class RecordedRequest:
    """One request that the server received."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: Any


class Refused(NamedTuple):
    """A response with another status."""

    status: int
    body: object


@dataclass
class FakeEngine:
    """Responds with `respond(request)` as JSON; bytes are sent unchanged."""

    respond: Callable[[RecordedRequest], object]
    status: int = 200
    delay: float = 0.0
    url: str = ""
    requests: list[RecordedRequest] = field(default_factory=list)
    num_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the requests of one connection."""
        self.num_open += 1
        try:
            while line := await reader.readline():
                await self._request(line, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client disconnected
        finally:
            self.num_open -= 1
            writer.close()

    async def _request(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        method, target, _ = line.decode().split()
        headers = {}
        while (header := (await reader.readline()).decode().strip()) != "":
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        split = urlsplit(target)
        params = {name: values[0] for name, values in parse_qs(split.query).items()}
        body = json.loads(content) if content else None
        request = RecordedRequest(
            method=method, path=split.path, params=params, headers=headers, body=body
        )
        self.requests.append(request)
        await asyncio.sleep(self.delay)
        response, status = self.respond(request), self.status
        if isinstance(response, Refused):
            status, response = response
        data = response if isinstance(response, bytes) else json.dumps(response).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()


@asynccontextmanager
async def fake_engine(
    respond: Callable[[RecordedRequest], object], **fields: Any
) -> AsyncIterator[FakeEngine]:
    """Runs a fake search engine on a free port."""
    engine = FakeEngine(respond, **fields)
    server = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield engine
    finally:
        server.close()
