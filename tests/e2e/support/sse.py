"""Parses server-sent events from a response, with the arrival time of each."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event; `at` is its arrival, a `time.monotonic()` value."""

    name: str
    data: dict[str, Any]
    id: str | None
    at: float


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    """Yields the events of a response, without comments and `[DONE]`."""
    name, data, number = "message", "", None
    async for line in response.aiter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            data += value
        elif field == "id":
            number = value
        elif line == "" and data:
            if data != "[DONE]":
                parsed = json.loads(data)
                yield Event(name=name, data=parsed, id=number, at=time.monotonic())
            name, data, number = "message", "", None
