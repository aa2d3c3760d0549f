"""A small HTTP server that answers as a test says, and notes what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(kw_only=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: Any


@dataclass
class Engine:
    """Answers `answer(asked)` as JSON; bytes go out as they are."""

    answer: Callable[[Asked], object]
    status: int = 200
    delay: float = 0.0
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    num_open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, many requests."""
        self.num_open += 1
        try:
            while line := await reader.readline():
                await self._request(line, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
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
        asked = Asked(method=method, path=split.path, params=params, headers=headers, body=body)
        self.asked.append(asked)
        await asyncio.sleep(self.delay)
        answer = self.answer(asked)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        head = f"HTTP/1.1 {self.status} X\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await writer.drain()


@asynccontextmanager
async def engine(answer: Callable[[Asked], object], **fields: Any) -> AsyncIterator[Engine]:
    """An engine on a free port."""
    made = Engine(answer, **fields)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
