"""How late the event loop is."""

from __future__ import annotations

import asyncio
import time

from mesh.observability import loop_lag
from tests.helpers import eventually
from tests.samples import Change


async def test_a_blocked_loop_shows(no_tasks_left: None) -> None:
    """Whoever blocks the loop is seen in the bucket of how long they did."""
    name, labels = "mesh_event_loop_lag_seconds", {"component": "lag"}
    async with loop_lag.watched("lag"):
        change = Change()
        await asyncio.sleep(loop_lag.INTERVAL_SECONDS / 2)
        time.sleep(loop_lag.INTERVAL_SECONDS / 2 + 0.3)  # noqa: ASYNC251
        await eventually(lambda: change.of(f"{name}_sum", **labels) >= 0.25, "the lag is seen")
    assert change.of(f"{name}_bucket", **labels, le="0.25") < change.of(f"{name}_count", **labels)


async def test_an_idle_loop_is_observed_as_well(no_tasks_left: None) -> None:
    """So that a rate has something to divide by."""
    change = Change()
    async with loop_lag.watched("idle"):
        await eventually(
            lambda: change.of("mesh_event_loop_lag_seconds_count", component="idle") >= 2, "looks"
        )
