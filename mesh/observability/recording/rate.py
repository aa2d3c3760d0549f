"""A limit of events a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class TokenBucket:
    """Allows `per_second` events a second, and up to `capacity` at once. Thread-safe."""

    def __init__(
        self,
        per_second: float,
        capacity: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` must be more than 0 and may be less than 1."""
        self._per_second = per_second
        self._clock = clock
        self._capacity = max(float(capacity), per_second)
        self._left = self._capacity
        self._seen = clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more event is allowed now."""
        with self._lock:
            now = self._clock()
            refilled = self._left + (now - self._seen) * self._per_second
            self._left, self._seen = min(refilled, self._capacity), now
            if self._left < 1:
                return False
            self._left -= 1
            return True
