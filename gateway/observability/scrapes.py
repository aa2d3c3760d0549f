"""Generates the metrics for `/metrics` without delaying other requests.

A scrape takes up to 100 ms of CPU time if clients have used every route, method and status, and
needs no key. Therefore a thread generates the metrics, one at a time and for all scrapes that wait,
and at most a tenth of the time.
"""

from __future__ import annotations

import asyncio
import time

from mesh.observability.exposition import Exposition, Wanted, expose

MAX_SHARE = 0.1
"""Maximum share of the time in which metrics are generated."""


class Scrapes:
    """The scrapes of one gateway."""

    def __init__(self) -> None:
        self._generating = asyncio.Lock()
        self._next: dict[Wanted, asyncio.Task[Exposition]] = {}
        """Of each form, the generation that has not started yet."""
        self._not_before = 0.0
        """Time on the monotonic clock before which no generation starts."""

    async def scrape(self, wanted: Wanted) -> Exposition:
        """The metrics at a time after this call."""
        task = self._next.get(wanted)
        if task is None:
            task = asyncio.create_task(self._generate(wanted), name="metrics")
            self._next[wanted] = task
        return await asyncio.shield(task)  # other scrapes may wait for it

    async def _generate(self, wanted: Wanted) -> Exposition:
        async with self._generating:
            await asyncio.sleep(self._not_before - time.monotonic())
            del self._next[wanted]
            started = time.monotonic()
            try:
                return await asyncio.to_thread(expose, wanted)
            finally:
                now = time.monotonic()
                self._not_before = now + (now - started) * (1 / MAX_SHARE - 1)
