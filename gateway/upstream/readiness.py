"""Readiness: whether a token can be produced."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from gateway.http.drain import Drain
from gateway.upstream.client import Orchestrator

CHECK_TIMEOUT_SECONDS = 1.0
CACHE_SECONDS = 0.5
"""Seconds for which the orchestrator's health is cached."""

PROBLEMS_SECONDS = 10.0
"""Seconds for which, while ready, the problems are cached: each call is logged upstream."""

PROBLEMS_TIMEOUT_SECONDS = 0.5
"""Less than CHECK_TIMEOUT_SECONDS, since a probe waits for both."""


class State(NamedTuple):
    """What a readiness check found."""

    reason: str | None
    """Why no token can be produced, or None if ready."""
    problems: tuple[str, ...] = ()
    """While ready: why engines get no requests, a sentence for each reason."""


class Readiness:
    """Checks the orchestrator's health, which covers tokenizer and engines."""

    def __init__(self, orchestrator: Orchestrator, drain: Drain) -> None:
        self._orchestrator = orchestrator
        self._drain = drain
        self._lock = asyncio.Lock()
        self._state = State(None)
        self._checked: float | None = None
        self._problems: tuple[str, ...] = ()
        self._asked: float | None = None

    async def state(self) -> State:
        """The state, checked at most once in CACHE_SECONDS."""
        if self._drain.draining:
            return State("draining")
        async with self._lock:
            if self._checked is None or time.monotonic() - self._checked >= CACHE_SECONDS:
                self._state = await self._check()
                self._checked = time.monotonic()
        return self._state

    async def _check(self) -> State:
        if not await self._orchestrator.is_serving(CHECK_TIMEOUT_SECONDS):
            problems = await self._orchestrator.problems(CHECK_TIMEOUT_SECONDS)
            return State(": ".join(["the orchestrator cannot produce tokens", *problems[:1]]))
        now = time.monotonic()
        if self._asked is None or now - self._asked >= PROBLEMS_SECONDS:
            self._problems = await self._orchestrator.problems(PROBLEMS_TIMEOUT_SECONDS)
            self._asked = now
        return State(None, self._problems)
