"""Time for tests of what waits: it passes when told to."""

from __future__ import annotations


class Clock:
    """Stands in for the module `time` where only `monotonic` is used."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now
