"""Scrapes of `/metrics` share their work and delay no other request."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from gateway.observability import scrapes
from gateway.observability.scrapes import MAX_SHARE, Scrapes
from mesh.observability.exposition import Exposition, Format, Wanted

PLAIN = Wanted(Format.PLAIN_TEXT)


class Expositions:
    """Replaces `expose`: each takes some time, as Python code."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.started: list[float] = []
        self.threads: set[int] = set()
        self._running = 0
        self.most_running = 0

    def expose(self, wanted: Wanted) -> Exposition:
        self.threads.add(threading.get_ident())
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        self.started.append(time.monotonic())
        while time.monotonic() < self.started[-1] + self._seconds:
            pass
        self._running -= 1
        return Exposition(str(len(self.started)).encode(), {"content-type": wanted.format.value})


@pytest.fixture
def expositions(monkeypatch: pytest.MonkeyPatch) -> Expositions:
    made = Expositions(0.03)
    monkeypatch.setattr(scrapes, "expose", made.expose)
    return made


async def test_scrapes_that_wait_share_an_exposition(expositions: Expositions) -> None:
    """It begins after the last of them arrived; another format has its own."""
    shared = Scrapes()
    first = asyncio.create_task(shared.scrape(PLAIN))
    while not expositions.started:
        await asyncio.sleep(0.001)
    later = [asyncio.create_task(shared.scrape(PLAIN)) for _ in range(50)]
    other = asyncio.create_task(shared.scrape(Wanted(Format.OPENMETRICS)))
    assert (await first).body == b"1"
    assert {(await each).body for each in later} == {b"2"}
    assert await other == Exposition(b"3", {"content-type": Format.OPENMETRICS.value})
    assert expositions.most_running == 1


async def test_a_scrape_that_is_cancelled_cancels_no_other_one(expositions: Expositions) -> None:
    """Its client may leave."""
    shared = Scrapes()
    first, second = (asyncio.create_task(shared.scrape(PLAIN)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).body == b"1"


async def test_a_flood_of_scrapes_takes_a_tenth_of_the_time(expositions: Expositions) -> None:
    """And none of it on the event loop."""
    shared = Scrapes()
    for _ in range(3):
        await shared.scrape(PLAIN)
    pauses = [b - a for a, b in zip(expositions.started, expositions.started[1:], strict=False)]
    assert min(pauses) >= 0.03 / MAX_SHARE
    assert threading.get_ident() not in expositions.threads
