"""Estimates Retry-After from the tokens that are still to be processed and the measured speed.

Refused callers form a virtual queue: each is given the time at which the accepted work, and that
of the callers refused before it, is expected to be done.
"""

from __future__ import annotations

import random
import time
from collections import deque

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0

WINDOW_SECONDS = 0.5
"""Length of the windows in which speed is measured."""

SMOOTHING = 0.3
"""Weight of the newest window in the exponential moving average of the speed."""

DEFAULT_SECONDS = 1.0
"""Assumed time until one request ends, before a speed has been measured."""


class Work:
    """The tokens of one request, which runs inside the block. Made by `Backlog.work`."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self.num_ahead = 0
        """Tokens of this request that are still to be processed."""

    def __enter__(self) -> Work:
        self._backlog.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._backlog.end(self)

    def expect(self, num_tokens: int) -> None:
        """Add expected tokens."""
        self.num_ahead += num_tokens
        self._backlog.num_ahead += num_tokens

    def done(self, num_tokens: int) -> None:
        """Record that tokens have been processed."""
        self._backlog.num_ahead -= min(num_tokens, self.num_ahead)
        self.num_ahead -= min(num_tokens, self.num_ahead)
        self._backlog.count(num_tokens)


class Backlog:
    """All accepted requests and their unprocessed tokens. Use it from one event loop only."""

    def __init__(self) -> None:
        self.num_ahead = 0
        self.num_running = 0
        self.tokens_per_second: float | None = None
        """Speed of all requests together, measured while there are any."""
        self._window_began = 0.0
        self._window_tokens = 0
        self._retry_times: deque[float] = deque()

    def work(self) -> Work:
        """Track a request inside the block; at its end the remaining tokens are removed."""
        return Work(self)

    def begin(self) -> None:
        """Called by `Work` when a request starts."""
        if self.num_running == 0:
            self._window_began, self._window_tokens = time.monotonic(), 0
        self.num_running += 1

    def end(self, work: Work) -> None:
        """Called by `Work` when its request ends."""
        self.num_running -= 1
        self.num_ahead -= work.num_ahead

    def count(self, num_tokens: int) -> None:
        """Update the measured speed with tokens that have just been processed."""
        self._window_tokens += num_tokens
        now = time.monotonic()
        seconds = now - self._window_began
        if seconds < WINDOW_SECONDS:
            return
        speed = self._window_tokens / seconds
        old = self.tokens_per_second
        self.tokens_per_second = speed if old is None else old + SMOOTHING * (speed - old)
        self._window_began, self._window_tokens = now, 0

    def retry_after(self) -> float:
        """Seconds until a refused caller should retry; adds it to the virtual queue.

        The remaining tokens divided by the speed is the time until all n running requests are
        done; one of them ends in an n-th of it. The k-th waiting caller is given k times that,
        with a jitter of ±50 %.
        """
        now = time.monotonic()
        while self._retry_times and self._retry_times[0] <= now:
            self._retry_times.popleft()
        one = DEFAULT_SECONDS
        if self.tokens_per_second:
            one = self.num_ahead / self.tokens_per_second / max(1, self.num_running)
        expected = one * (len(self._retry_times) + 1) * random.uniform(0.5, 1.5)
        seconds = min(max(expected, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
        # Not sorted, because of the jitter: an earlier time is removed together with a later one.
        self._retry_times.append(now + seconds)
        return seconds
