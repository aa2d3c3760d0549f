"""Reads server-sent events from a response, with the arrival time of each."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx


class Event(NamedTuple):
    """One event; `at` is its arrival by `time.monotonic()`. A comment has the name ":"."""

    name: str
    id: str | None
    text: str
    at: float

    @property
    def data(self) -> Any:
        """The data as JSON."""
        return json.loads(self.text)


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    """Yield the events of a response as they arrive, comments included."""
    buffer = b""
    async for chunk in response.aiter_raw():
        buffer += chunk
        *frames, buffer = buffer.split(b"\n\n")
        for frame in frames:
            yield parse(frame)
    assert buffer == b"", "the stream ended inside of an event"


def parse(frame: bytes) -> Event:
    """Parse one event; its lines end with LF."""
    fields: dict[str, str] = {}
    for line in frame.split(b"\n"):
        name, _, value = line.decode().partition(": ")
        assert name in ("event", "data", "id", "retry", ""), line
        assert name not in fields, line
        fields[name or ":"] = value
    name = ":" if ":" in fields else fields.get("event", "message")
    text = fields.get(":", "") or fields.get("data", "")
    return Event(name, fields.get("id"), text, time.monotonic())
