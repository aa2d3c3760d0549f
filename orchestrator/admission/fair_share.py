"""Shares out a limited number of something between keys, without letting anybody wait.

A key may take all that nobody else wants, but for a small reserve: with it a key that comes
later finds room at once, and as what runs ends, the two come to equal shares.
"""

from __future__ import annotations

import time

RESERVE = 0.125
"""Share of the whole that is kept for keys which have less than theirs."""

HUNGRY_SECONDS = 2.0
"""How long after a refusal a key counts as one that wants more."""


class FairShare:
    """`limit` units, held by keys. The key "" is of requests without one. For one event loop."""

    def __init__(self, limit: int) -> None:
        """`limit` 0: as many as are asked for."""
        self.limit = limit
        self.num_held = 0
        self._held: dict[str, int] = {}
        self._hungry: dict[str, float] = {}

    def held_by(self, key: str) -> int:
        """What the key holds now."""
        return self._held.get(key, 0)

    def take(self, key: str, amount: int = 1) -> bool:
        """Takes `amount` for the key, or says False and remembers that it wanted more.

        Who holds nothing while nobody does gets what it asks for, however much it is.
        """
        if self.limit and self.num_held and not self._fits(key, amount):
            self._hungry[key] = time.monotonic()
            return False
        self._held[key] = self.held_by(key) + amount
        self.num_held += amount
        return True

    def give(self, key: str, amount: int = 1) -> None:
        """Gives back what was taken."""
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
            return True  # no keys are in use: nobody to be fair to
        wanted = self.held_by(key) + amount
        if wanted <= self.limit / (others + 2):
            return True
        if wanted > self.limit / (others + 1) and self._others_are_hungry(key, others):
            return False
        return free - amount >= int(self.limit * RESERVE)

    def _others_are_hungry(self, key: str, others: int) -> bool:
        since = time.monotonic() - HUNGRY_SECONDS
        self._hungry = {name: at for name, at in self._hungry.items() if at > since}
        share = self.limit / (others + 1)
        return any(name != key and self.held_by(name) < share for name in self._hungry)
