"""The HTTP client of the checks; it exposes raw bytes and the boundaries of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


class Skipped(Exception):
    """The check does not apply to this server; the message contains the reason."""


@dataclass
class StreamedResponse:
    """A stream that has been read to its end."""

    status: int = 0
    content_type: str = ""
    raw: bytes = b""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Arrival time of each chunk, a `time.monotonic()` value."""
    comments: list[str] = field(default_factory=list)
    done: bool = False
    """Whether the last event was `[DONE]`."""

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices of all chunks, in order."""
        return [choice for chunk in self.chunks for choice in chunk.get("choices", [])]

    def text(self, index: int = 0) -> str:
        """The concatenated text of one choice."""
        choices = [choice for choice in self.choices if choice["index"] == index]
        return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


class Server:
    """A server under test."""

    def __init__(self, base_url: str, model: str, api_key: str, timeout: float) -> None:
        """A trailing `/v1` of `base_url` is ignored."""
        self.model = model
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/").removesuffix("/v1"),
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            trust_env=False,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def get(self, path: str) -> httpx.Response:
        """Sends a GET request."""
        return await self._http.get(path)

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """Sends a POST request with a JSON body, to which it adds the model."""
        return await self._http.post(path, json={"model": self.model, **body})

    async def post_bytes(self, path: str, body: bytes) -> httpx.Response:
        """Sends a POST request with any body, declared as JSON."""
        headers = {"content-type": "application/json"}
        return await self._http.post(path, content=body, headers=headers)

    @asynccontextmanager
    async def open(self, path: str, **body: Any) -> AsyncIterator[httpx.Response]:
        """Opens a stream; leaving the block closes the connection."""
        request = {"model": self.model, "stream": True, **body}
        async with self._http.stream("POST", path, json=request) as response:
            yield response

    async def stream(self, path: str, **body: Any) -> StreamedResponse:
        """Reads a stream to its end."""
        streamed = StreamedResponse()
        async with self.open(path, **body) as response:
            streamed.status = response.status_code
            streamed.content_type = response.headers.get("content-type", "")
            buffer = b""
            async for data in response.aiter_raw():
                streamed.raw += data
                *events, buffer = (buffer + data).replace(b"\r\n", b"\n").split(b"\n\n")
                for event in events:
                    _read_event(event, streamed)
        return streamed

    async def num_running(self) -> float:
        """Number of running requests in the server's metrics. Raises Skipped if there is none."""
        response = await self._http.get("/metrics")
        if response.status_code != 200:
            raise Skipped("there is no /metrics")
        for name in ("gateway_num_streams_active", "vllm:num_requests_running"):
            values = [
                float(line.rpartition(" ")[2])
                for line in response.text.splitlines()
                if line.startswith(name) and line[len(name)] in " {"
            ]
            if values:
                return sum(values)
        raise Skipped("/metrics has no number of running requests")

    async def wait_idle(self, seconds: float) -> float:
        """Waits until no request runs and returns the seconds; fails after `seconds`."""
        started = time.monotonic()
        while await self.num_running() > 0:
            assert time.monotonic() - started < seconds, f"still running after {seconds} s"
            await asyncio.sleep(0.05)
        return time.monotonic() - started


def _read_event(event: bytes, streamed: StreamedResponse) -> None:
    data = ""
    for line in event.decode("utf-8", "strict").split("\n"):
        if line.startswith(":"):
            streamed.comments.append(line[1:].strip())
        elif line.startswith("data:"):
            data += line[5:].removeprefix(" ")
    assert not (data and streamed.done), "an event follows [DONE]"
    if data == "[DONE]":
        streamed.done = True
    elif data:
        streamed.chunks.append(json.loads(data))
        streamed.times.append(time.monotonic())
