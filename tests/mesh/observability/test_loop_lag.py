"""The lag of the event loop."""

from __future__ import annotations

import asyncio
import time

from mesh.observability import loop_lag
from tests.helpers import eventually
from tests.samples import Change


async def test_a_blocked_loop_is_measured(no_tasks_left: None) -> None:
    """The time for which a call blocks the loop is observed as lag."""
    name, labels = "mesh_event_loop_lag_seconds", {"component": "lag"}
    async with loop_lag.measure("lag"):
        change = Change()
        await asyncio.sleep(loop_lag.INTERVAL_SECONDS / 2)
        time.sleep(loop_lag.INTERVAL_SECONDS / 2 + 0.3)  # noqa: ASYNC251
        await eventually(lambda: change.of(f"{name}_sum", **labels) >= 0.25, "the lag is observed")
    assert change.of(f"{name}_bucket", **labels, le="0.25") < change.of(f"{name}_count", **labels)


async def test_an_idle_loop_is_observed_as_well(no_tasks_left: None) -> None:
    """An idle loop has observations too, so that rates are defined."""
    change = Change()
    async with loop_lag.measure("idle"):
        await eventually(
            lambda: change.of("mesh_event_loop_lag_seconds_count", component="idle") >= 2,
            "observations",
        )
