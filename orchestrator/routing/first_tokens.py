"""Finds an engine that gives no first tokens although others do, such as one whose step is stuck.

Health and connection of such an engine may be good. How long a first token takes depends on model,
prompt and load, so an engine is compared with the others: a waiting request is overdue only if
other engines have given first tokens to requests that began later, and its own engine has not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

MIN_OVERDUE_SECONDS = 5.0
"""Shortest time after which a request without a first token can be overdue."""

SLOWNESS = 10.0
"""It is overdue after this many times the longest recent time of the other engines."""

DECAY = 0.9
"""Each first token lowers the recorded longest time by this factor, so that it is recent."""


class FirstTokens:
    """The requests of one engine that wait for their first token. For one event loop."""

    def __init__(self) -> None:
        self.recent_seconds = 0.0
        """Longest recent time to a first token."""
        self.newest_served = float("-inf")
        """When the latest request began that has got its first token."""
        # When each waiting request began, in order; requests that were overdue are not in it.
        self._waiting: dict[object, float] = {}
        self._overdue: set[object] = set()

    def begin(self) -> object:
        """Record a request that is sent to the engine; returns its key."""
        key = object()
        self._waiting[key] = time.monotonic()
        return key

    def served(self, key: object) -> None:
        """Record the first token of a request: the engine is not stuck."""
        began = self._waiting.pop(key, None)
        self._overdue.clear()
        if began is not None:
            seconds = time.monotonic() - began
            self.recent_seconds = max(seconds, DECAY * self.recent_seconds)
            self.newest_served = max(began, self.newest_served)

    def left(self, key: object) -> None:
        """Record that a request ended, with or without a first token."""
        self._waiting.pop(key, None)
        self._overdue.discard(key)

    def find_overdue(self, others: Iterable[FirstTokens]) -> tuple[bool, int]:
        """Whether any waiting request is overdue, and the number that have become so."""
        now = time.monotonic()
        oldest = next(iter(self._waiting.values()), now)
        if now - oldest <= MIN_OVERDUE_SECONDS:
            return bool(self._overdue), 0
        others = [other for other in others if other is not self]
        served = max((other.newest_served for other in others), default=float("-inf"))
        recent = max((other.recent_seconds for other in others), default=0.0)
        limit = max(MIN_OVERDUE_SECONDS, SLOWNESS * recent)
        found = [
            key
            for key, began in self._waiting.items()
            if self.newest_served < began < served and now - began > limit
        ]
        for key in found:
            del self._waiting[key]
        self._overdue.update(found)
        return bool(self._overdue), len(found)
