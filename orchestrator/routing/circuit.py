"""Circuit breaker per engine, from the outcomes of its streams.

closed ──consecutive failures, or too high a failure rate──▶ open ──after a delay──▶ half open
   ▲                                                         ▲                         │
   └───────────────────────── a stream that succeeds ────────┼─────────────────────────┤
                                                             └──── one that fails ──────┘
"""

from __future__ import annotations

import time
from collections import deque

MAX_CONSECUTIVE_FAILURES = 3
WINDOW = 20
"""Number of latest outcomes that the failure rate is computed from."""

MIN_OUTCOMES = 8
MAX_FAILURE_SHARE = 0.4

FIRST_OPEN_SECONDS = 1.0
MAX_OPEN_SECONDS = 30.0

SLOW_START_SECONDS = 10.0
MIN_LOAD_SHARE = 0.1


class Circuit:
    """Circuit breaker of one engine. For one event loop."""

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._num_consecutive = 0
        self._opened: float | None = None
        self._open_seconds = FIRST_OPEN_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether the engine should receive no requests now."""
        return self._opened is not None and self._since(self._opened) < self._open_seconds

    def success(self) -> None:
        """Records a stream that succeeded; closes a half-open circuit."""
        if self.is_open:
            return  # the stream began before the circuit opened
        if self._opened is not None:
            self._outcomes.clear()
        self._opened = None
        self._open_seconds = FIRST_OPEN_SECONDS
        self._num_consecutive = 0
        self._outcomes.append(True)

    def failure(self) -> bool:
        """Records a stream that failed; returns whether this opens the circuit."""
        if self.is_open:
            return False  # streams that fail together count as one failure
        half_open = self._opened is not None
        self._num_consecutive += 1
        self._outcomes.append(False)
        if half_open:
            self._open_seconds = min(2 * self._open_seconds, MAX_OPEN_SECONDS)
        elif self._num_consecutive < MAX_CONSECUTIVE_FAILURES and not self._fails_often:
            return False
        self._opened = time.monotonic()
        return True

    @property
    def _fails_often(self) -> bool:
        num = len(self._outcomes)
        return num >= MIN_OUTCOMES and self._outcomes.count(False) / num > MAX_FAILURE_SHARE

    def _since(self, when: float) -> float:
        return time.monotonic() - when


class SlowStart:
    """Limits the load of an engine that has just become ready, for `SLOW_START_SECONDS`.

    Its caches are cold, and its first requests may fail.
    """

    def __init__(self) -> None:
        self._since = time.monotonic()

    def restart(self) -> None:
        """Starts again with `MIN_LOAD_SHARE`, because the engine has just become ready."""
        self._since = time.monotonic()

    @property
    def share(self) -> float:
        """Fraction of the full load, rising from `MIN_LOAD_SHARE` to 1."""
        passed = (time.monotonic() - self._since) / SLOW_START_SECONDS
        return min(1.0, max(MIN_LOAD_SHARE, passed))
