"""The buffer behind a stream that can be resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.streaming.replay_buffer import MAX_BYTES, MAX_UNREAD_BYTES, ReplayBuffer

SIZE = 1000


class Source:
    """Frames of `SIZE` bytes, numbered, as fast as they are taken."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_made = 0
        self.is_closed = False

    async def frames(self) -> AsyncGenerator[bytes]:
        try:
            while self.num_made < self.number:
                self.num_made += 1
                yield frame(self.num_made - 1)
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


def frame(number: int) -> bytes:
    """A frame that says its number."""
    return f"{number}".encode().ljust(SIZE)


@pytest.fixture
async def ended() -> list[str]:
    return []


async def test_an_unread_stream_is_not_read_ahead_without_bound(
    no_tasks_left: None, ended: list[str]
) -> None:
    """The source waits for its reader, with the bytes ahead of it bounded."""
    source = Source(1000)
    replay = ReplayBuffer(source.frames(), 60, lambda: ended.append("ended"))
    stream = replay.read(0)
    assert await anext(stream) == frame(0)
    for _ in range(2000):
        await asyncio.sleep(0)
    assert source.num_made * SIZE <= MAX_UNREAD_BYTES + 3 * SIZE
    assert [each async for each in stream] == [frame(number) for number in range(1, 1000)]
    await stream.aclose()
    replay.close()
    assert ended == ["ended"]


async def test_what_is_kept_is_bounded(no_tasks_left: None, ended: list[str]) -> None:
    """Old frames are dropped once they were read, and cannot be asked for any more."""
    replay = ReplayBuffer(Source(1000).frames(), 60, lambda: ended.append("ended"))
    stream = replay.read(0)
    for _ in range(900):
        await anext(stream)
    kept = [begin for begin in range(901) if replay.has(begin)]
    assert MAX_BYTES / SIZE - 100 < len(kept) <= MAX_BYTES / SIZE + 1
    await stream.aclose()
    resumed = replay.read(kept[0])
    assert [each async for each in resumed] == [frame(number) for number in range(kept[0], 1000)]
    replay.close()


async def test_the_grace_ends_the_source(no_tasks_left: None, ended: list[str]) -> None:
    """It is closed in its own task, and `on_end` is called once."""
    source = Source(10**9)
    replay = ReplayBuffer(source.frames(), 0.05, lambda: ended.append("ended"))
    stream = replay.read(0)
    await anext(stream)
    await stream.aclose()
    assert ended == []
    async with asyncio.timeout(5):
        await asyncio.wait([replay.task])
    assert source.is_closed
    assert ended == ["ended"]
    replay.close()
    assert ended == ["ended"]


async def test_coming_back_stops_the_grace(no_tasks_left: None, ended: list[str]) -> None:
    """The time runs only while nobody reads."""
    replay = ReplayBuffer(Source(10**9).frames(), 0.5, lambda: ended.append("ended"))
    stream = replay.read(0)
    await anext(stream)
    await stream.aclose()
    resumed = replay.read(1)
    assert await anext(resumed) == frame(1)
    await asyncio.sleep(0.7)
    assert await anext(resumed) == frame(2)
    assert ended == []
    await resumed.aclose()
    replay.close()


async def test_a_place_that_has_not_come_yet_is_not_there(
    no_tasks_left: None, ended: list[str]
) -> None:
    """Nobody can have seen it."""
    replay = ReplayBuffer(Source(2).frames(), 60, lambda: ended.append("ended"))
    await asyncio.wait([replay.task])
    assert [replay.has(begin) for begin in range(4)] == [True, True, True, False]
    replay.close()
