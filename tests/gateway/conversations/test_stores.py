"""The stores of responses: the same contract in memory, in SQLite and in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.conversations.memory import MemoryStore
from gateway.conversations.postgres import PostgresStore
from gateway.conversations.sqlite import SqliteStore
from gateway.conversations.store import (
    ENTRY_BYTES,
    MAX_CHUNKS,
    EventChunk,
    ResponseStore,
    StoredResponse,
    StoreLimits,
)
from mesh.errors import ErrorKind, MeshError
from tests.helpers import eventually
from tests.orchestrator.search.retrievers.postgres import needs_postgres

Open = Callable[..., ResponseStore]

LIMITS = StoreLimits(seconds=60, max_bytes=64 * 1024, lease_seconds=60)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgres", marks=needs_postgres)])
async def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens stores of one kind; those in a database share it."""
    opened: list[ResponseStore] = []
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""

    def open(**changed: float) -> ResponseStore:
        limits = replace(LIMITS, **changed)  # type: ignore[arg-type]
        made: dict[str, Callable[[], ResponseStore]] = {
            "memory": lambda: MemoryStore(limits),
            "sqlite": lambda: SqliteStore(str(tmp_path / "responses.db"), limits),
            "postgres": lambda: PostgresStore(url, limits),
        }
        opened.append(made[request.param]())
        return opened[-1]

    yield open
    for store in opened:
        await store.close()


_number = 0


def stored(owner: str = "a", status: str = "completed", size: int = 10) -> StoredResponse:
    """A response with a new id."""
    global _number
    _number += 1
    return StoredResponse(
        id=f"resp_{_number}", owner=owner, status=status, response=b"\x00{}", items=b"x" * size
    )


async def test_a_response_is_found_by_its_owner_alone(open_store: Open) -> None:
    """And deleted once."""
    store, one = open_store(), stored("a")
    await store.put(one)
    assert await store.get("a", one.id) == one
    assert await store.get("b", one.id) is None
    assert await store.get("a", "resp_other") is None
    assert not await store.delete("b", one.id)
    assert await store.delete("a", one.id)
    assert not await store.delete("a", one.id)
    assert await store.get("a", one.id) is None


async def test_a_response_expires(open_store: Open) -> None:
    """Also without a sweep; a sweep removes it."""
    store, one = open_store(seconds=0.05), stored()
    await store.put(one)
    await asyncio.sleep(0.06)
    assert await store.get("a", one.id) is None
    assert not await store.delete("a", one.id)
    await store.sweep()
    await store.put(replace(one, items=b"again"))  # the id is free again


async def test_the_oldest_responses_of_an_owner_make_room(open_store: Open) -> None:
    """The limit holds for each owner, up to a sixteenth in databases."""
    store = open_store(seconds=600, max_bytes=40 * ENTRY_BYTES)
    other = stored("b")
    await store.put(other)
    entries = [stored("a", size=ENTRY_BYTES - 3) for _ in range(50)]
    for entry in entries:
        await store.put(entry)
    kept = [entry for entry in entries if await store.get("a", entry.id) is not None]
    assert kept == entries[-len(kept) :]
    assert 19 <= len(kept) <= 23
    assert await store.get("b", other.id) is not None


async def test_only_a_running_response_is_replaced(open_store: Open) -> None:
    """So a cancellation and the end cannot both win."""
    store, one = open_store(), stored(status="in_progress")
    await store.put(one)
    done = replace(one, status="completed", response=b"done", items=b"all")
    assert not await store.finish(replace(done, owner="b"))
    assert await store.finish(done)
    assert await store.get("a", one.id) == done
    assert not await store.finish(replace(done, status="cancelled"))
    assert await store.get("a", one.id) == done
    assert not await store.finish(stored())


async def test_events_of_a_running_response(open_store: Open) -> None:
    """Read from any number on, by its owner; none are added after its end."""
    store, one = open_store(), stored(status="in_progress")
    chunks = [EventChunk(0, 2, b"a"), EventChunk(2, 3, b"b"), EventChunk(3, 9, b"c")]
    await store.put(one)
    assert await store.events("a", one.id, 0) == (True, [])
    for chunk in chunks:
        assert await store.append_events("a", one.id, chunk)
    assert not await store.append_events("b", one.id, EventChunk(9, 10, b"d"))
    for begin, rest in ((0, chunks), (1, chunks), (2, chunks[1:]), (8, chunks[2:]), (9, [])):
        assert await store.events("a", one.id, begin) == (True, rest)
    assert await store.events("b", one.id, 0) is None
    assert await store.finish(replace(one, status="completed"))
    assert not await store.append_events("a", one.id, EventChunk(9, 10, b"d"))
    assert await store.events("a", one.id, 0) == (False, chunks)
    await store.delete("a", one.id)
    assert await store.events("a", one.id, 0) is None
    await store.put(one)
    assert await store.events("a", one.id, 0) == (True, [])


async def test_events_are_read_in_parts_and_counted(open_store: Open) -> None:
    """A long stream is not read at once; its bytes count towards the owner's limit."""
    store = open_store(max_bytes=64 * ENTRY_BYTES)
    older, one = stored(), stored(status="in_progress")
    for each in (older, one):
        await store.put(each)
    chunks = [EventChunk(n, n + 1, b"x" * ENTRY_BYTES) for n in range(MAX_CHUNKS + 2)]
    for chunk in chunks:
        await store.append_events("a", one.id, chunk)
    assert await store.events("a", one.id, 0) == (True, chunks[:MAX_CHUNKS])
    assert await store.events("a", one.id, MAX_CHUNKS) == (True, chunks[MAX_CHUNKS:])
    assert await store.finish(replace(one, status="completed"))
    for _ in range(48):
        await store.put(stored())
    assert await store.get("a", older.id) is None


async def test_the_events_of_an_abandoned_response_end(open_store: Open) -> None:
    store, one = open_store(lease_seconds=0.02), stored(status="in_progress")
    await store.put(one)
    await store.append_events("a", one.id, EventChunk(0, 1, b"a"))
    await asyncio.sleep(0.04)
    assert await store.events("a", one.id, 0) == (False, [EventChunk(0, 1, b"a")])


async def test_leases_of_running_responses(open_store: Open) -> None:
    """Renewed while they run; without that, the response counts as abandoned."""
    store = open_store(lease_seconds=0.2)
    first, second, done = stored(status="in_progress"), stored(status="queued"), stored()
    for each in (first, second, done):
        await store.put(each)

    async def is_abandoned(id: str) -> bool:
        found = await store.get("a", id)
        assert found is not None
        return found.abandoned

    assert not await is_abandoned(first.id)
    ids = [first.id, done.id, "resp_other"]
    assert await store.renew(ids) == {first.id}
    while not await is_abandoned(second.id):
        assert await store.renew(ids) == {first.id}
        assert not await is_abandoned(first.id)
        await asyncio.sleep(0.01)
    assert not await is_abandoned(done.id)


@pytest.mark.parametrize("open_store", ["sqlite", "postgres"], indirect=True)
async def test_gateways_share_a_database(open_store: Open) -> None:
    """Also when all of them use it for the first time at once."""
    stores = [open_store() for _ in range(4)]
    entries = [stored(status="queued") for _ in stores]
    await asyncio.gather(*(s.put(e) for s, e in zip(stores, entries, strict=True)))
    for store in stores:
        assert [await store.get("a", entry.id) for entry in entries] == entries
    results = await asyncio.gather(*(s.finish(replace(entries[0], status="x")) for s in stores))
    assert sorted(results) == [False, False, False, True]


async def test_an_unreachable_store_is_unavailable(tmp_path: Path) -> None:
    """SQLite in a missing folder, and a PostgreSQL that refuses connections."""
    for store in (
        SqliteStore(str(tmp_path / "missing" / "x.db"), LIMITS),
        PostgresStore("postgresql://x@127.0.0.1:1/x", LIMITS),
    ):
        with pytest.raises(MeshError) as caught:
            await store.put(stored())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await store.close()


async def test_the_largest_owner_gives_way() -> None:
    """When all owners together use too much memory, the others keep their responses."""
    store = MemoryStore(replace(LIMITS, max_bytes=10 * ENTRY_BYTES))
    small = [stored(f"small {number}", size=ENTRY_BYTES) for number in range(12)]
    for entry in small:
        await store.put(entry)
    for number in range(40):
        await store.put(stored(f"large {number % 2}", size=ENTRY_BYTES))
    assert store._total <= 40 * ENTRY_BYTES
    assert [await store.get(entry.owner, entry.id) for entry in small] == small
    largest = [store._num_bytes[f"large {number}"] for number in range(2)]
    assert min(largest) > 5 * ENTRY_BYTES


async def test_memory_is_freed_when_responses_expire() -> None:
    """By the next one, or by a sweep."""
    store = MemoryStore(replace(LIMITS, seconds=0.01))
    await store.put(stored())
    await asyncio.sleep(0.02)
    await store.sweep()
    await eventually(lambda: not store._entries and not store._owned, "nothing is kept")
    assert store._num_bytes == {}
