"""Responses in the memory of this process."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from gateway.conversations.store import RUNNING, ResponseStore, StoredResponse, StoreLimits


@dataclass(slots=True)
class _Entry:
    stored: StoredResponse
    expires: float
    lease: float
    """Absolute, in `time.monotonic()`, as `expires`."""


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
        abandoned = entry.stored.status in RUNNING and entry.lease < time.monotonic()
        return replace(entry.stored, abandoned=abandoned)

    async def finish(self, stored: StoredResponse) -> bool:
        entry = self._find(stored.owner, stored.id)
        if entry is None or entry.stored.status not in RUNNING:
            return False
        self._count(stored.owner, stored.num_bytes - entry.stored.num_bytes)
        entry.stored = stored
        self._trim(stored.owner)
        return True

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
            if entry is not None and entry.stored.status in RUNNING:
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
        stored = self._entries.pop(id).stored
        self._owned[stored.owner].pop(id)
        self._count(stored.owner, -stored.num_bytes)
        if not self._owned[stored.owner]:
            del self._owned[stored.owner], self._num_bytes[stored.owner]

    def _count(self, owner: str, num_bytes: int) -> None:
        self._num_bytes[owner] = self._num_bytes.get(owner, 0) + num_bytes
        self._total += num_bytes
