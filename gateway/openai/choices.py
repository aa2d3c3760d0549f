"""Merges several generations into one stream of events: the choices of one response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeAlias, cast

from gateway.streaming.direct_path import DirectPath
from gateway.upstream.client import Orchestrator
from gateway.upstream.generation import Event, Generation
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish, GenerationStarted

Stream: TypeAlias = AsyncGenerator[Event]


class Accepted(NamedTuple):
    """The first event: every choice is accepted."""

    started: tuple[GenerationStarted, ...]

    @property
    def model(self) -> str:
        """The name of the served model."""
        return self.started[0].model


class ChoiceEvent(NamedTuple):
    """An event of one choice; choices are numbered from 0."""

    number: int
    event: Delta | GenerationFinish


Events: TypeAlias = AsyncGenerator[Accepted | ChoiceEvent]


async def accepted_event(events: Events) -> Accepted:
    """Return the first event, which reports that the request is accepted. Raises MeshError."""
    event = await anext(events)
    assert isinstance(event, Accepted), "the first event must be Accepted"
    return event


def choice_events(events: Events) -> AsyncGenerator[ChoiceEvent]:
    """The events after the first one. The caller still owns and closes `events`."""
    return cast("AsyncGenerator[ChoiceEvent]", events)


def direct_choices(
    orchestrator: Orchestrator, generations: Sequence[Generation], direct: DirectPath
) -> Events:
    """The events of the generations that `direct` does not take; see `choices`.

    It takes deltas of a single generation. Several ones wait for one another.
    """
    take = direct.take if len(generations) == 1 else None
    return choices([orchestrator.generate(each, take) for each in generations])


async def choices(streams: Sequence[Stream]) -> Events:
    """Yield `Accepted`, then the choices' events as they arrive, one finish each. Raises MeshError.

    Takes ownership of the streams: all are closed, and a failure of one ends all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as events:
            yield Accepted((_started(await anext(events)),))
            async for event in events:
                yield ChoiceEvent(0, _later(event))
        return
    merge = _Merge(len(streams))
    # One task for each stream: a call must be closed by the task that opened it.
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


async def prompts_only(events: Events) -> Events:
    """The events of a request for no tokens: the echo of each choice, and its finish."""
    # The echo is what comes before a choice's first token. A later delta without tokens is the rest
    # of a token that ends within a character.
    echoed: set[int] = set()
    async with aclosing(events):
        async for each in events:
            if isinstance(each, Accepted):
                yield each
            elif isinstance(each.event, GenerationFinish):
                usage = each.event.usage._replace(completion_tokens=0)
                aborted = each.event.reason is FinishReason.ABORT
                reason = FinishReason.ABORT if aborted else FinishReason.LENGTH
                yield ChoiceEvent(each.number, GenerationFinish(reason, usage))
            elif each.event.num_tokens:
                echoed.add(each.number)
            elif each.number not in echoed:
                yield each


class _Merge:
    """Passes events from the tasks to one reader: one is queued, and each task holds one more."""

    def __init__(self, num_streams: int) -> None:
        self._num_running = num_streams
        self._started: list[GenerationStarted | None] = [None] * num_streams
        self._decided = asyncio.Event()
        self._refusal: Exception | None = None
        self._queue: asyncio.Queue[ChoiceEvent | Exception | None] = asyncio.Queue(1)

    async def pump(self, index: int, stream: Stream) -> None:
        """Read a stream to its end; the reader receives its exception."""
        end: Exception | None = None
        try:
            async with aclosing(stream) as events:
                self._started[index] = _started(await anext(events))
                if all(self._started):
                    self._decided.set()
                # Nothing is sent until all choices are accepted, so nothing more is read.
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
        """Wait until every stream has started; raises the first exception instead."""
        await self._decided.wait()
        if self._refusal is not None:
            raise self._refusal
        return tuple(each for each in self._started if each is not None)

    async def events(self) -> AsyncGenerator[ChoiceEvent]:
        """The events after acceptance, until the last stream ends."""
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
