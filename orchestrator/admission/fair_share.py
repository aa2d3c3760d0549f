"""Shares a limited resource fairly between API keys, without a queue.

A key may use all units that no other key wants, except for a small reserve. The reserve gives a
new key some units at once; as running requests end, both keys approach equal shares.
"""

from __future__ import annotations

import time

RESERVE = 0.125
"""Fraction of the limit that is reserved for keys below their fair share."""

DEMAND_SECONDS = 2.0
"""Time after a refusal during which a key counts as wanting more."""


class FairShare:
    """`limit` units, held by keys; "" is the key of requests without one. For one event loop."""

    def __init__(self, limit: int) -> None:
        """`limit` 0: unlimited."""
        self.limit = limit
        self.num_held = 0
        self._held: dict[str, int] = {}
        self._refused_at: dict[str, float] = {}

    def held_by(self, key: str) -> int:
        """Units that the key holds."""
        return self._held.get(key, 0)

    def take(self, key: str, amount: int = 1) -> bool:
        """Takes `amount` for the key; returns False, and remembers the demand, if it is refused.

        An idle limiter grants the first request in full, whatever its size.
        """
        if self.limit and self.num_held and not self._fits(key, amount):
            self._refused_at[key] = time.monotonic()
            return False
        self._held[key] = self.held_by(key) + amount
        self.num_held += amount
        return True

    def give(self, key: str, amount: int = 1) -> None:
        """Returns `amount` units of the key."""
        self.num_held -= amount
        left = self.held_by(key) - amount
        if left:
            self._held[key] = left
        else:
            del self._held[key]

    def _fits(self, key: str, amount: int) -> bool:
        free = self.limit - self.num_held
        if amount > free:
            return False
        others = len(self._held.keys() - {key})
        if not key and not others:
            return True  # there is no other key to share with
        wanted = self.held_by(key) + amount
        if wanted <= self.limit / (others + 2):
            return True
        if wanted > self.limit / (others + 1) and self._others_want_more(key, others):
            return False
        return free - amount >= int(self.limit * RESERVE)

    def _others_want_more(self, key: str, others: int) -> bool:
        since = time.monotonic() - DEMAND_SECONDS
        self._refused_at = {name: at for name, at in self._refused_at.items() if at > since}
        share = self.limit / (others + 1)
        return any(name != key and self.held_by(name) < share for name in self._refused_at)
