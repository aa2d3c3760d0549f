"""The events of responses in the background: written as they arise, read from any number on.

    run ── append() ──▶ EventLog: the newest events ── flush() ──▶ store: all events
                             │                                       │
                             └── readers at this gateway             └── all other readers

A reader that keeps up with a run of the same gateway reads each event when it arises. All others
read from the store, which the run writes to once a second.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from itertools import islice

from gateway.conversations.store import EventChunk, ResponseStore, StoredEvents

MAX_BYTES = 256 * 1024
"""Most bytes of stored events that are kept in memory beside, for readers at this gateway."""

MAX_UNSAVED_BYTES = 4 * 1024 * 1024
"""Most bytes that wait for a store that fails; further events are lost."""

CHUNK_BYTES = 64 * 1024
"""Bytes of events that are stored together, before compression."""

_END = b"\n\n"
_LAST_KINDS = tuple(
    f"event: response.{status}\n".encode()
    for status in ("completed", "incomplete", "failed", "cancelled")
)


def is_last(event: bytes) -> bool:
    """Whether a stream ends with this event."""
    return event.startswith(_LAST_KINDS)


class EventLog:
    """The events of one run; the number of an event is its `sequence_number`."""

    def __init__(self, store: ResponseStore, owner: str, id: str) -> None:
        self._store = store
        self._owner = owner
        self._id = id
        self._events: deque[bytes] = deque()
        self._num_bytes = 0
        self._first = self._saved = 0
        """Number of the oldest event in memory, and of the first that is not stored yet."""
        self._unsaved_bytes = 0
        self._grown = asyncio.Event()
        self._writing = asyncio.Lock()

    @property
    def end(self) -> int:
        """Number of the next event."""
        return self._first + len(self._events)

    def append(self, frames: bytes) -> None:
        """Add the events of a frame."""
        if self._unsaved_bytes > MAX_UNSAVED_BYTES:
            return  # the store fails; its error has been logged
        for event in frames.split(_END)[:-1]:
            self._events.append(event + _END)
        self._num_bytes += len(frames)
        self._unsaved_bytes += len(frames)
        self.wake()

    def wake(self) -> None:
        """Let the readers look again."""
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    def next_change(self) -> asyncio.Event:
        """Set by the next `append` or `wake`."""
        return self._grown

    def read(self, begin: int) -> list[bytes] | None:
        """The events in memory from `begin` on; None if older ones are needed."""
        if begin < self._first:
            return None
        return list(islice(self._events, begin - self._first, None))

    async def flush(self) -> None:
        """Store the events that are not stored yet. Raises MeshError (UNAVAILABLE)."""
        async with self._writing:
            while self._saved < self.end:
                chunk, num_bytes = self._next_chunk()
                if not await self._store.append_events(self._owner, self._id, chunk):
                    return  # it was cancelled or deleted
                self._saved = chunk.end
                self._unsaved_bytes -= num_bytes
            while self._num_bytes > MAX_BYTES and self._first < self._saved:
                self._num_bytes -= len(self._events.popleft())
                self._first += 1

    def _next_chunk(self) -> tuple[EventChunk, int]:
        """The next events to store, and their size in memory."""
        events, num_bytes = [], 0
        for event in islice(self._events, self._saved - self._first, None):
            events.append(event)
            num_bytes += len(event)
            if num_bytes >= CHUNK_BYTES:
                break
        data = zlib.compress(b"".join(events), 1)
        return EventChunk(self._saved, self._saved + len(events), data), num_bytes


def events_of(found: StoredEvents, begin: int) -> list[bytes]:
    """The consecutive events from number `begin` on in the chunks; empty if it is not there."""
    events: list[bytes] = []
    for chunk in found.chunks:
        number = begin + len(events)
        if not chunk.first <= number < chunk.end:
            break
        parts = zlib.decompress(chunk.data).split(_END)[:-1]
        events += (part + _END for part in parts[number - chunk.first :])
    return events
