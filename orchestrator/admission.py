"""Decides before any work whether a request is taken. Nothing waits here."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mesh.errors import ErrorKind, MeshError

_SMOOTHING = 0.1
"""Weight of the newest request in the mean duration."""

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0


class Admission:
    """At most `limit` requests at a time. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.num_admitted = 0
        self._mean_duration = 1.0

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Holds a place inside the block. Raises MeshError (OVERLOADED) at once if all are held."""
        if self.num_admitted >= self.limit:
            raise MeshError(
                ErrorKind.OVERLOADED,
                f"{self.num_admitted} requests are being worked on, the limit is {self.limit}",
                retry_after=self.retry_after(),
            )
        self.num_admitted += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.num_admitted -= 1
            duration = time.monotonic() - started
            self._mean_duration += _SMOOTHING * (duration - self._mean_duration)

    def retry_after(self) -> float:
        """Seconds until a place is likely free, spread so that callers do not return all at once.

        With `limit` requests of the mean duration running, one ends every mean / limit seconds.
        """
        expected = self._mean_duration / self.limit * random.uniform(0.5, 1.5)
        return min(max(expected, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
