"""ReplayBuffer, the buffer of a resumable stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from gateway.streaming.replay_buffer import MAX_BYTES, MAX_UNREAD_BYTES, ReplayBuffer

SIZE = 1000


class Source:
    """Produces numbered frames of `SIZE` bytes, as fast as they are read."""

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
    """A frame that contains its number."""
    return f"{number}".encode().ljust(SIZE)


@pytest.fixture
async def ended() -> list[str]:
    return []


async def test_read_ahead_is_bounded(no_tasks_left: None, ended: list[str]) -> None:
    """The source is read at most MAX_UNREAD_BYTES ahead of the client."""
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


async def test_kept_frames_are_bounded(no_tasks_left: None, ended: list[str]) -> None:
    """Frames that were read are dropped above MAX_BYTES, and can no longer be read."""
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


async def test_the_end_of_the_grace_period_closes_the_source(
    no_tasks_left: None, ended: list[str]
) -> None:
    """The pump's task closes the source; `on_end` is called once."""
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


async def test_a_new_reader_stops_the_grace_period(no_tasks_left: None, ended: list[str]) -> None:
    """The timer runs only while there is no reader."""
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


async def test_frames_after_the_last_cannot_be_read(no_tasks_left: None, ended: list[str]) -> None:
    """`has` is true up to one past the last frame."""
    replay = ReplayBuffer(Source(2).frames(), 60, lambda: ended.append("ended"))
    await asyncio.wait([replay.task])
    assert [replay.has(begin) for begin in range(4)] == [True, True, True, False]
    replay.close()
