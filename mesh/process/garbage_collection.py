"""Runs Python's garbage collector on a timer, so that each collection is short.

A collection of the youngest generation visits every object that was created since the previous
collection and is still alive; all streams pause meanwhile. By default Python starts a collection
when allocations exceed deallocations by a threshold. A service that allocates and frees at the
same rate reaches it rarely, so the generation grows: a collection then takes up to 50 ms with a
thousand streams. On a timer the generation stays small. Most garbage consists of the seven objects
in reference cycles that each served gRPC call leaves.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

YOUNG_SECONDS = 0.1
"""Minimum time between two collections of the youngest generation."""

MAX_SHARE = 0.01
"""Maximum share of time spent in collections; after a longer one the next is delayed."""

MAX_YOUNG_SECONDS = 10.0
"""Maximum delay of the next collection."""

MIDDLE_SECONDS = 300.0
"""Time between two collections of the middle generation."""

GROWTH_BYTES = 32 << 20
"""Growth of the process's memory after which the middle generation is collected sooner.

A request that is in progress during a collection of the youngest generation moves to the middle
one, and a large request may remain in a reference cycle there.
"""

MIN_MIDDLE_SECONDS = 5.0
"""Minimum time between two collections of the middle generation."""

MIDDLE_PER_FULL = 12
"""Every this many collections of the middle generation, one is a full collection."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")

THRESHOLDS = (1_000_000, 3, 3)
"""Thresholds for Python's own collections, if the timer is late; the default is (700, 10, 10)."""


def freeze_startup_objects() -> None:
    """Exclude all existing objects from future collections, and raise Python's thresholds.

    Called when a service starts to listen. Modules, models and stubs live until the process ends;
    visiting them again costs a tenth of the CPU time of a short request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


@asynccontextmanager
async def collect_on_timer() -> AsyncIterator[None]:
    """Inside the block, collect new objects on a timer; objects made before it are excluded."""
    freeze_startup_objects()
    collecting = asyncio.create_task(_collect(), name="garbage collection")
    try:
        yield
    finally:
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)


async def _collect() -> None:
    duration, num_middle = 0.0, 0
    collected_at, memory = time.monotonic(), resident_bytes()
    while True:
        await asyncio.sleep(pause_after(duration))
        started = time.monotonic()
        gc.collect(0)
        duration = time.monotonic() - started
        age = started - collected_at
        has_grown = age >= MIN_MIDDLE_SECONDS and resident_bytes() - memory >= GROWTH_BYTES
        if has_grown or age >= MIDDLE_SECONDS:
            num_middle += 1
            gc.collect(1 if num_middle % MIDDLE_PER_FULL else 2)
            collected_at, memory = started, resident_bytes()


def resident_bytes() -> int:
    """Resident memory of this process; 0 where there is no /proc."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return 0
    return pages * _PAGE_BYTES


def pause_after(duration: float) -> float:
    """Seconds until the next collection, after one that took `duration` seconds."""
    return min(max(YOUNG_SECONDS, duration / MAX_SHARE), MAX_YOUNG_SECONDS)
