"""How much work lies ahead, how fast it goes, and so when it is worth to come back.

A refused caller takes a place in a line that nobody stands in: it is told when the work ahead of
it, and of those refused before it, will likely be done.
"""

from __future__ import annotations

import random
import time
from collections import deque

MIN_RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 30.0

WINDOW_SECONDS = 0.5
"""Over which a speed is measured."""

SMOOTHING = 0.3
"""Weight of the newest window."""

GUESS_SECONDS = 1.0
"""For one request to end, while no speed has been measured yet."""


class Work:
    """One request's tokens; `Backlog.work` makes one. It runs inside the block."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self.num_ahead = 0
        """Tokens of this request that are still to be worked on."""

    def __enter__(self) -> Work:
        self._backlog.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self._backlog.end(self)

    def expect(self, num_tokens: int) -> None:
        """So many more are to come."""
        self.num_ahead += num_tokens
        self._backlog.num_ahead += num_tokens

    def done(self, num_tokens: int) -> None:
        """So many of them have been worked on."""
        self._backlog.num_ahead -= min(num_tokens, self.num_ahead)
        self.num_ahead -= min(num_tokens, self.num_ahead)
        self._backlog.count(num_tokens)


class Backlog:
    """All work that was accepted and is not done. For one event loop."""

    def __init__(self) -> None:
        self.num_ahead = 0
        self.num_running = 0
        self.tokens_per_second: float | None = None
        """Of all requests together, as measured while there was work."""
        self._window_began = 0.0
        self._window_tokens = 0
        self._promised: deque[float] = deque()

    def work(self) -> Work:
        """For a request, which runs inside the block; what it left undone is forgotten."""
        return Work(self)

    def begin(self) -> None:
        """For `Work`: one more request runs."""
        if self.num_running == 0:
            self._window_began, self._window_tokens = time.monotonic(), 0
        self.num_running += 1

    def end(self, work: Work) -> None:
        """For `Work`: its request has ended."""
        self.num_running -= 1
        self.num_ahead -= work.num_ahead

    def count(self, num_tokens: int) -> None:
        """Measures: so many tokens have just been worked on."""
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
        """Seconds until a refused caller likely finds room; each call is one more who waits.

        Tokens ahead over tokens a second is when all that runs is done; of n requests, one ends
        in an nth of it. The k-th who waits is told k times that, spread by half either way.
        """
        now = time.monotonic()
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        one = GUESS_SECONDS
        if self.tokens_per_second:
            one = self.num_ahead / self.tokens_per_second / max(1, self.num_running)
        expected = one * (len(self._promised) + 1) * random.uniform(0.5, 1.5)
        seconds = min(max(expected, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
        # Not sorted, but near enough: an early one behind a late one leaves the line with it.
        self._promised.append(now + seconds)
        return seconds
