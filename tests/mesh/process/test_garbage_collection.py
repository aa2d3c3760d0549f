"""Garbage is looked for by the clock."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from mesh.process import garbage_collection
from tests.helpers import eventually


class Node:
    """Something that refers to itself, as only the collector can free it then."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


async def test_a_cycle_is_freed_soon() -> None:
    """Without anything being made that would let Python look by itself."""
    async with garbage_collection.collected_by_the_clock():
        node = weakref.ref(Node())
        assert node() is not None
        await eventually(lambda: node() is None, "freed")


async def test_what_was_there_is_not_looked_at() -> None:
    """Modules and models stay: a cycle of theirs would not even be freed."""
    kept = Node()
    node = weakref.ref(kept)
    async with garbage_collection.collected_by_the_clock():
        del kept
        await asyncio.sleep(3 * garbage_collection.YOUNG_SECONDS)
        assert node() is not None


async def test_survivors_are_looked_at_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every so many times all there is."""
    monkeypatch.setattr(garbage_collection, "YOUNG_SECONDS", 0.0)
    monkeypatch.setattr(garbage_collection, "SURVIVORS_SECONDS", 0.0)
    monkeypatch.setattr(garbage_collection, "NUM_UNTIL_ALL", 3)
    looked: list[int] = []
    monkeypatch.setattr(
        garbage_collection.gc, "collect", lambda generation=2: looked.append(generation)
    )
    async with garbage_collection.collected_by_the_clock():
        await eventually(lambda: len(looked) >= 7, "looked")
    assert looked[:7] == [2, 0, 1, 0, 1, 0, 2]


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.1), (0.0005, 0.1), (0.01, 1.0), (60.0, 10.0)])
def test_looks_take_a_hundredth_of_the_time(took: float, pause: float) -> None:
    """At most, however much there is to look at."""
    assert garbage_collection.pause_after(took) == pytest.approx(pause)
