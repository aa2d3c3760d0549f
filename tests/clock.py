"""A fake clock for tests of timeouts: tests set its time."""

from __future__ import annotations


class Clock:
    """Replaces the module `time` in code that uses only `monotonic`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now
