"""Durations of a sequence's stages."""

from __future__ import annotations

import pytest

from inference.engine.interface import Timings


@pytest.mark.parametrize(
    ("scheduled", "first_token", "ttft", "stages"),
    [
        (3.0, 6.0, 5.0, (2.0, 3.0, 4.0)),
        (3.0, None, None, (2.0, 7.0, 0.0)),
        (None, None, None, (9.0, 0.0, 0.0)),
    ],
)
def test_a_stage_that_was_not_reached_takes_no_time(
    scheduled: float | None,
    first_token: float | None,
    ttft: float | None,
    stages: tuple[float, float, float],
) -> None:
    """The stage in which a sequence ends lasts until its finish; the stages add up to the total."""
    timings = Timings(arrival=1.0, scheduled=scheduled, first_token=first_token, finish=10.0)
    assert timings.ttft_seconds == ttft
    assert (timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds) == stages
    assert sum(stages) == timings.e2e_seconds
