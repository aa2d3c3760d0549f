"""Several generations at once as one stream of events: the choices of one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeAlias, cast

from gateway.upstream.generation import Event
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted

Stream: TypeAlias = AsyncGenerator[Event]


class Accepted(NamedTuple):
    """Every choice is accepted; the first event."""

    started: tuple[GenerationStarted, ...]

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.started[0].model


class ChoiceEvent(NamedTuple):
    """An event of one choice, which are numbered from 0."""

    number: int
    event: Delta | GenerationFinish


Events: TypeAlias = AsyncGenerator[Accepted | ChoiceEvent]


async def accepted_event(events: Events) -> Accepted:
    """The first event, by which the request is accepted. Raises MeshError."""
    event = await anext(events)
    assert isinstance(event, Accepted), "the first event accepts"
    return event


def choice_events(events: Events) -> AsyncGenerator[ChoiceEvent]:
    """What follows it, as only the first event accepts. `events` stay their owner's to close."""
    return cast("AsyncGenerator[ChoiceEvent]", events)


async def choices(streams: Sequence[Stream]) -> Events:
    """`Accepted`, then the choices' events as they come, one finish each. Raises MeshError.

    Owns the streams: all are closed in the end, and one that fails ends them all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            yield Accepted((_started(await anext(events)),))
            async for event in events:
                yield ChoiceEvent(0, _later(event))
        return
    merge = _Merge(len(streams))
    # A task each: a call must be closed by the task that opened it.
    tasks = [
        asyncio.create_task(merge.pump(index, stream), name=f"choice {index}")
        for index, stream in enumerate(streams)
    ]
    try:
        yield Accepted(await merge.accepted())
        async for choice_event in merge.events():
            yield choice_event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Merge:
    """What passes from the tasks to the one reader: one event, and one that each task holds."""

    def __init__(self, num_streams: int) -> None:
        self._num_running = num_streams
        self._started: list[GenerationStarted | None] = [None] * num_streams
        self._decided = asyncio.Event()
        self._refusal: Exception | None = None
        self._queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(1)

    async def pump(self, index: int, stream: Stream) -> None:
        """Reads a stream to its end; the reader gets what it raises."""
        end: Exception | None = None
        try:
            async with aclosing(stream) as events:
                self._started[index] = _started(await anext(events))
                if all(self._started):
                    self._decided.set()
                # Until all are accepted nothing is sent, so nothing is read either.
                await self._decided.wait()
                async for event in events:
                    await self._queue.put(ChoiceEvent(index, _later(event)))
        except Exception as error:
            end = error
            if self._started[index] is None:
                self._refusal = error
                self._decided.set()
        await self._queue.put(end)

    async def accepted(self) -> tuple[GenerationStarted, ...]:
        """Waits until every stream has begun; raises what one raised instead."""
        await self._decided.wait()
        if self._refusal is not None:
            raise self._refusal
        return tuple(each for each in self._started if each is not None)

    async def events(self) -> AsyncGenerator[ChoiceEvent]:
        """What comes after the beginnings, to the end of the last stream."""
        while self._num_running:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                self._num_running -= 1
            else:
                yield item


def _started(event: Event) -> GenerationStarted:
    if not isinstance(event, GenerationStarted):
        raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
    return event


def _later(event: Event) -> Delta | GenerationFinish:
    if not isinstance(event, (Delta, GenerationFinish)):
        raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
    return event
