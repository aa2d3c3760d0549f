"""How late the event loop is: what every stream of a process waits for, and no request shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mesh.observability.metrics import EVENT_LOOP_LAG

INTERVAL_SECONDS = 0.1


@asynccontextmanager
async def watched(component: str) -> AsyncIterator[None]:
    """Observes the running loop's lag inside the block, under the service's name."""
    watching = asyncio.create_task(_watch(component), name="loop lag")
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _watch(component: str) -> None:
    lag = EVENT_LOOP_LAG.labels(component)
    while True:
        # Not the loop's own clock, which stands still while callbacks run.
        due = time.monotonic() + INTERVAL_SECONDS
        await asyncio.sleep(INTERVAL_SECONDS)
        lag.observe(max(0.0, time.monotonic() - due))
