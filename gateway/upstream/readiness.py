"""Readiness: whether a token can be produced, known from a continuous health watch."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from gateway.http.drain import Drain
from gateway.upstream.client import Orchestrator
from mesh.observability.telemetry import unrecorded_span

PROBLEMS_SECONDS = 10.0
"""Interval, while ready, at which the problems are asked for: each call is logged upstream."""

NOT_READY_SECONDS = 1.0
"""The same while not ready, when the first problem is the reason."""

PROBLEMS_TIMEOUT_SECONDS = 5.0


class State(NamedTuple):
    """What is known now."""

    reason: str | None
    """Why no token can be produced, or None if ready."""
    problems: tuple[str, ...] = ()
    """While ready: why engines get no requests, a sentence for each reason."""


class Readiness:
    """Knows the orchestrators' health, which covers tokenizers and engines.

    A probe is answered from this knowledge: a round trip within the probe's timeout would fail
    when the node is busy, and take a gateway out of service whose streams go on.
    """

    def __init__(self, orchestrator: Orchestrator, drain: Drain) -> None:
        self._orchestrator = orchestrator
        self._drain = drain
        self._problems: tuple[str, ...] = ()

    @property
    def state(self) -> State:
        """The state now."""
        if self._drain.draining:
            return State("draining")
        if not self._orchestrator.is_ready:
            return State(": ".join(["the orchestrator cannot produce tokens", *self._problems[:1]]))
        return State(None, self._problems)

    async def watch(self) -> None:
        """Keep the problems up to date, until cancelled."""
        while True:
            with unrecorded_span():
                self._problems = await self._orchestrator.problems(PROBLEMS_TIMEOUT_SECONDS)
            ready = self._orchestrator.is_ready
            try:
                async with asyncio.timeout(PROBLEMS_SECONDS if ready else NOT_READY_SECONDS):
                    await self._orchestrator.wait_changed()
            except TimeoutError:
                pass
