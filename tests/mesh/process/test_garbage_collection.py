"""The garbage collector runs on a timer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from mesh.process import garbage_collection
from tests.helpers import eventually


class Node:
    """An object that refers to itself, so that only the garbage collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


async def test_a_reference_cycle_is_freed_soon() -> None:
    """Without the allocations that would start Python's own collection."""
    async with garbage_collection.collect_on_timer():
        node = weakref.ref(Node())
        assert node() is not None
        await eventually(lambda: node() is None, "freed")


async def test_startup_objects_are_not_collected() -> None:
    """Objects that existed before, such as modules and models, are excluded from collections."""
    kept = Node()
    node = weakref.ref(kept)
    async with garbage_collection.collect_on_timer():
        del kept
        await asyncio.sleep(3 * garbage_collection.YOUNG_SECONDS)
        assert node() is not None


async def test_every_nth_collection_is_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middle generation is collected on its own timer; every third time here, all of them."""
    monkeypatch.setattr(garbage_collection, "YOUNG_SECONDS", 0.0)
    monkeypatch.setattr(garbage_collection, "MIDDLE_SECONDS", 0.0)
    monkeypatch.setattr(garbage_collection, "MIDDLE_PER_FULL", 3)
    collected: list[int] = []
    monkeypatch.setattr(
        garbage_collection.gc, "collect", lambda generation=2: collected.append(generation)
    )
    async with garbage_collection.collect_on_timer():
        await eventually(lambda: len(collected) >= 7, "collected")
    assert collected[:7] == [2, 0, 1, 0, 1, 0, 2]


async def test_memory_that_grows_is_collected_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that was in use during a collection of the youngest generation is freed."""
    monkeypatch.setattr(garbage_collection, "MIN_MIDDLE_SECONDS", 0.0)
    memory = 0
    monkeypatch.setattr(garbage_collection, "resident_bytes", lambda: memory)
    async with garbage_collection.collect_on_timer():
        kept = [Node()]
        node = weakref.ref(kept[0])
        is_middle = lambda: any(each is kept[0] for each in gc.get_objects(1))  # noqa: E731
        await eventually(is_middle, "moved to the middle generation")
        kept.clear()
        memory = garbage_collection.GROWTH_BYTES
        await eventually(lambda: node() is None, "freed")


def test_the_resident_memory_of_this_process_is_read() -> None:
    """It grows by what is allocated and written."""
    before = garbage_collection.resident_bytes()
    block = bytearray(b"x") * (64 << 20)
    assert garbage_collection.resident_bytes() - before > 32 << 20
    assert len(block) == 64 << 20


@pytest.mark.parametrize(
    ("duration", "pause"), [(0.0, 0.1), (0.0005, 0.1), (0.01, 1.0), (60.0, 10.0)]
)
def test_collections_take_at_most_a_hundredth_of_the_time(duration: float, pause: float) -> None:
    """After a long collection the next one is delayed, by at most ten seconds."""
    assert garbage_collection.pause_after(duration) == pytest.approx(pause)
