"""Times to the first token of valid requests, and how they are judged beside a disturbance."""

from __future__ import annotations

import time

import httpx

from tests.e2e.support.poison import CHAT

MAX_RATIO = 2.0
"""Most slowdown of the others' 99th percentile of the time to the first token."""

NUM_SAMPLES_OF_P99 = 300
"""With fewer samples the 90th percentile is judged: their 99th is the largest or the next one."""


async def first_token_seconds(client: httpx.AsyncClient) -> float:
    """The time to the first token of a valid request, which must succeed."""
    began = time.monotonic()
    body = {**CHAT, "max_tokens": 8, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        seconds = 0.0
        async for line in response.aiter_lines():
            assert '"error"' not in line, line
            if not seconds and '"content"' in line:
                seconds = time.monotonic() - began
    assert seconds, "no token"
    return seconds


def percentile(times: list[float], fraction: float) -> float:
    """The value which this fraction of the times does not exceed."""
    return sorted(times)[int(len(times) * fraction)]


async def time_requests(client: httpx.AsyncClient, seconds: float) -> list[float]:
    """Times to the first token of requests that are sent one after another for some time."""
    end = time.monotonic() + seconds
    times: list[float] = []
    while time.monotonic() < end or len(times) < 20:
        times.append(await first_token_seconds(client))
    return times


def is_slowed_at_most_twofold(
    quiet: list[float], disturbed: list[float], least_seconds: float
) -> bool:
    """Whether the disturbed times are at most MAX_RATIO times the quiet ones, or short.

    The 99th percentile is judged, the 90th of few samples; one below `least_seconds` is not.
    """
    fraction = 0.99 if min(len(quiet), len(disturbed)) >= NUM_SAMPLES_OF_P99 else 0.9
    limit = max(MAX_RATIO * percentile(quiet, fraction), least_seconds)
    return percentile(disturbed, fraction) <= limit


def milliseconds(times: list[float]) -> str:
    """The distribution of times, to be printed."""
    shown = [round(1000 * percentile(times, each)) for each in (0.5, 0.9, 0.99)]
    return f"p50, p90, p99 {shown} ms of {len(times)} requests"
