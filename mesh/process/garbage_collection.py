"""When a service looks for garbage: by the clock, a little at a time.

A look goes through all objects that were made since the last one and are still alive, and stops
every stream meanwhile. Python looks once so many more objects were made than freed, old ones
counted: where streams begin and end alike, that is seldom, and then the young ones are most of
what is alive, up to a twentieth of a second with a thousand streams. By the clock they are few.
What is found are seven objects of each call that gRPC served, which are garbage at once.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

YOUNG_SECONDS = 0.1
"""Between two looks at the youngest objects, at least."""

MAX_SHARE = 0.01
"""Most of the time that looks may take; where they took more, the next one comes later."""

MAX_YOUNG_SECONDS = 10.0

SURVIVORS_SECONDS = 300.0
"""Between two looks at those that were alive at a look; most of them are freed without one."""

NUM_UNTIL_ALL = 12
"""Every so many of these, all objects that are no part of the startup are looked at."""

THRESHOLDS = (1_000_000, 3, 3)
"""For Python's own looks, should the clock be late; the default is (700, 10, 10)."""


def keep_startup() -> None:
    """Takes what exists now out of the garbage collector's sight, and lets it look less often.

    Called once a service listens. Modules, models and stubs stay until the end; to look through
    them again and again costs a tenth of the CPU time of a short request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


@asynccontextmanager
async def collected_by_the_clock() -> AsyncIterator[None]:
    """Inside the block, what is made is looked at now and then, and what was there never."""
    keep_startup()
    looking = asyncio.create_task(_look(), name="garbage")
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def _look() -> None:
    took = 0.0
    survivors_due, num_survivors = time.monotonic() + SURVIVORS_SECONDS, 0
    while True:
        await asyncio.sleep(pause_after(took))
        began = time.monotonic()
        gc.collect(0)
        took = time.monotonic() - began
        if began >= survivors_due:
            num_survivors += 1
            gc.collect(1 if num_survivors % NUM_UNTIL_ALL else 2)
            survivors_due = began + SURVIVORS_SECONDS


def pause_after(took: float) -> float:
    """Seconds until the next look, if the last one took so many."""
    return min(max(YOUNG_SECONDS, took / MAX_SHARE), MAX_YOUNG_SECONDS)
