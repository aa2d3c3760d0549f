"""Readiness: whether a token can be produced."""

from __future__ import annotations

import asyncio
import time

from gateway.http.drain import Drain
from gateway.upstream.client import Orchestrator

CHECK_TIMEOUT_SECONDS = 1.0
CACHE_SECONDS = 0.5
"""Seconds for which the orchestrator's health is cached."""


class Readiness:
    """Checks the orchestrator's health, which covers tokenizer and engines."""

    def __init__(self, orchestrator: Orchestrator, drain: Drain) -> None:
        self._orchestrator = orchestrator
        self._drain = drain
        self._lock = asyncio.Lock()
        self._reason: str | None = None
        self._checked: float | None = None

    async def reason_not_ready(self) -> str | None:
        """The reason, or None if ready."""
        if self._drain.draining:
            return "draining"
        async with self._lock:
            if self._checked is None or time.monotonic() - self._checked >= CACHE_SECONDS:
                self._reason = await self._check()
                self._checked = time.monotonic()
        return self._reason

    async def _check(self) -> str | None:
        if await self._orchestrator.is_serving(CHECK_TIMEOUT_SECONDS):
            return None
        problems = await self._orchestrator.problems(CHECK_TIMEOUT_SECONDS)
        return ": ".join(["the orchestrator cannot produce tokens", *problems[:1]])
