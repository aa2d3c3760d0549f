"""Responses in the memory of this process."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from gateway.conversations.store import (
    MAX_CHUNKS,
    RUNNING,
    EventChunk,
    ResponseStore,
    StoredEvents,
    StoredResponse,
    StoreLimits,
)


@dataclass(slots=True)
class _Entry:
    stored: StoredResponse
    expires: float
    lease: float
    """Absolute, in `time.monotonic()`, as `expires`."""
    chunks: list[EventChunk] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes + sum(len(chunk.data) for chunk in self.chunks)

    @property
    def is_running(self) -> bool:
        return self.stored.status in RUNNING

    @property
    def is_abandoned(self) -> bool:
        return self.is_running and self.lease < time.monotonic()


FULL_OWNERS = 4
"""Limit of all owners together, as a multiple of the limit of one."""


class MemoryStore(ResponseStore):
    """Lost at a restart, and not shared between gateways.

    When the memory for all owners is full, the owner that uses most of it gives way.
    """

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        # Oldest first: all responses are kept equally long.
        self._entries: dict[str, _Entry] = {}
        self._owned: dict[str, dict[str, None]] = {}
        self._num_bytes: dict[str, int] = {}
        self._total = 0

    async def put(self, stored: StoredResponse) -> None:
        await self.sweep()
        now = time.monotonic()
        lease = now + self._limits.lease_seconds
        self._entries[stored.id] = _Entry(stored, now + self._limits.seconds, lease)
        self._owned.setdefault(stored.owner, {})[stored.id] = None
        self._count(stored.owner, stored.num_bytes)
        self._trim(stored.owner)

    async def get(self, owner: str, id: str) -> StoredResponse | None:
        entry = self._find(owner, id)
        if entry is None:
            return None
        return replace(entry.stored, abandoned=entry.is_abandoned)

    async def finish(self, stored: StoredResponse) -> bool:
        entry = self._find(stored.owner, stored.id)
        if entry is None or not entry.is_running:
            return False
        self._count(stored.owner, stored.num_bytes - entry.stored.num_bytes)
        entry.stored = stored
        self._trim(stored.owner)
        return True

    async def append_events(self, owner: str, id: str, chunk: EventChunk) -> bool:
        entry = self._find(owner, id)
        if entry is None or not entry.is_running:
            return False
        entry.chunks.append(chunk)
        self._count(owner, len(chunk.data))
        self._trim(owner)
        return True

    async def events(self, owner: str, id: str, begin: int) -> StoredEvents | None:
        entry = self._find(owner, id)
        if entry is None:
            return None
        chunks = [chunk for chunk in entry.chunks if chunk.end > begin]
        return StoredEvents(entry.is_running and not entry.is_abandoned, chunks[:MAX_CHUNKS])

    async def delete(self, owner: str, id: str) -> bool:
        if self._find(owner, id) is None:
            return False
        self._remove(id)
        return True

    async def renew(self, ids: Collection[str]) -> set[str]:
        lease = time.monotonic() + self._limits.lease_seconds
        running = set()
        for id in ids:
            entry = self._entries.get(id)
            if entry is not None and entry.is_running:
                entry.lease = lease
                running.add(id)
        return running

    async def sweep(self) -> None:
        now = time.monotonic()
        while self._entries:
            oldest = next(iter(self._entries))
            if self._entries[oldest].expires > now:
                return
            self._remove(oldest)

    async def close(self) -> None:
        self._entries.clear()

    def _find(self, owner: str, id: str) -> _Entry | None:
        entry = self._entries.get(id)
        if entry is None or entry.stored.owner != owner or entry.expires <= time.monotonic():
            return None
        return entry

    def _trim(self, owner: str) -> None:
        while self._num_bytes.get(owner, 0) > self._limits.max_bytes:
            self._remove(next(iter(self._owned[owner])))
        while self._total > FULL_OWNERS * self._limits.max_bytes:
            largest = max(self._num_bytes, key=self._num_bytes.__getitem__)
            self._remove(next(iter(self._owned[largest])))

    def _remove(self, id: str) -> None:
        entry = self._entries.pop(id)
        owner = entry.stored.owner
        self._owned[owner].pop(id)
        self._count(owner, -entry.num_bytes)
        if not self._owned[owner]:
            del self._owned[owner], self._num_bytes[owner]

    def _count(self, owner: str, num_bytes: int) -> None:
        self._num_bytes[owner] = self._num_bytes.get(owner, 0) + num_bytes
        self._total += num_bytes
