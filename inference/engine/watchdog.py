"""Finds a step that does not return, because the device, a driver or a kernel hangs.

The engine's thread cannot report this itself. It records its steps in a `StepClock`; the event loop
compares the age of the running step with earlier steps of a similar size.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable

STEP_TIMEOUT_SECONDS = 30.0
"""Default of the shortest limit of a step."""

SLOWNESS = 10.0
"""A step is stuck after this many times the longest recent step of a similar size."""

LOST_AFTER = 2.0
"""A stuck step is lost after this many times its limit."""

FIRST_STEP_SECONDS = 300.0
"""The expected duration as long as no step has been measured: kernels may be compiled in it."""

DECAY = 0.99
"""Each step lowers the measured maximum of its size by this factor, so that it is recent."""

MAX_CHECK_SECONDS = 1.0

_NUM_SIZES = 32


class StepState(enum.Enum):
    """State of the running step; without one it is RETURNING."""

    RETURNING = "returning"
    STUCK = "stuck"
    """It is over its limit; it may still return."""
    LOST = "lost"
    """It is not expected to return."""


class StepClock:
    """Durations of the steps, by size. The engine's thread writes, other threads read."""

    def __init__(self) -> None:
        self.number = 0
        """Number of steps that have begun."""
        self.running = False
        self._started = 0.0
        self._num_tokens = 0
        # Longest recent step of 2 ** (size - 1) to 2 ** size - 1 tokens; 0: none measured.
        self._longest = [0.0] * _NUM_SIZES

    def begin(self) -> None:
        """Record that a step begins."""
        self._num_tokens = 0
        self._started = time.monotonic()
        self.number += 1
        self.running = True

    def includes(self, num_tokens: int) -> None:
        """Record that the running step computes this many tokens."""
        self._num_tokens = max(self._num_tokens, num_tokens)

    def end(self) -> None:
        """Record that the running step has returned."""
        self.running = False
        if self._num_tokens:
            size = self._num_tokens.bit_length()
            seconds = time.monotonic() - self._started
            self._longest[size] = max(seconds, DECAY * self._longest[size])

    @property
    def expected_seconds(self) -> float:
        """Most seconds that the running step should take, by the steps measured so far.

        A size without a measured step takes at most as long as a larger step, and at most
        proportionally longer than a smaller one.
        """
        size = self._num_tokens.bit_length()
        for smaller in range(size, 0, -1):
            if self._longest[smaller]:
                return self._longest[smaller] * 2.0 ** (size - smaller)
        larger = [seconds for seconds in self._longest[size:] if seconds]
        return larger[0] if larger else FIRST_STEP_SECONDS / SLOWNESS


class Watchdog:
    """Compares the age of the running step with its limit. For one event loop."""

    def __init__(
        self, clock: StepClock, min_seconds: float, on_change: Callable[[StepState], None]
    ) -> None:
        """`min_seconds` is the shortest limit; `on_change` is called with each new state."""
        self.state = StepState.RETURNING
        self.age_seconds = 0.0
        """Observed age of the running step."""
        self._clock = clock
        self._min_seconds = min_seconds
        self._on_change = on_change
        self._number = 0

    async def run(self) -> None:
        """Check until a step is lost."""
        interval = min(MAX_CHECK_SECONDS, self._min_seconds / 10)
        last = time.monotonic()
        while self.state is not StepState.LOST:
            await asyncio.sleep(interval)
            now = time.monotonic()
            # While the process was stopped or this loop was blocked, the step may have been too.
            self.check(min(now - last, 2 * interval))
            last = now

    def check(self, elapsed: float) -> None:
        """Update the state; `elapsed` seconds have passed since the last check."""
        clock = self._clock
        if not clock.running or clock.number != self._number:
            self._number = clock.number
            self.age_seconds = 0.0
        else:
            self.age_seconds += elapsed
        limit = max(self._min_seconds, SLOWNESS * clock.expected_seconds)
        if self.age_seconds <= limit:
            state = StepState.RETURNING
        else:
            lost = self.age_seconds > LOST_AFTER * limit
            state = StepState.LOST if lost else StepState.STUCK
        if state is not self.state:
            self.state = state
            self._on_change(state)
