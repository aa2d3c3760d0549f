"""Measures the lag of the event loop, which delays every stream of the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.observability.metrics import EVENT_LOOP_LAG

INTERVAL_SECONDS = 0.1


@asynccontextmanager
async def measure(component: str) -> AsyncIterator[None]:
    """Observe the running loop's lag inside the block; `component` is the service's name."""
    measuring = asyncio.create_task(_measure(component), name="loop lag")
    try:
        yield
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


async def _measure(component: str) -> None:
    lag = EVENT_LOOP_LAG.labels(component)
    while True:
        # Not loop.time(), which does not advance while callbacks run.
        due = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        lag.observe(max(0.0, time.monotonic() - due))
