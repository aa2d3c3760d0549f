"""Resumable search streams and the ids of their events.

A browser's EventSource reconnects by itself; it is recognised by `Accept: text/event-stream`
with `Cache-Control: no-cache`. Other clients send `resumable=true`. Event ids are then
`STREAM.PLACE`, so that `Last-Event-ID` names the stream and the place in it. The ids of all other
streams are the place alone, and such a stream ends with its connection.

The name of a stream begins with the identity of its gateway, so that any gateway can read it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from gateway.http.errors import HttpError
from gateway.observability import metrics
from gateway.streaming.replay_buffer import ReplayBuffer
from gateway.streaming.sse import EVENT_STREAM
from mesh.context import current_request

RESULTS, COMPLETE, ERROR = "results", "complete", "error"
"""Places in the ids of events other than tokens; a token's place is its position."""

RETRY_MILLISECONDS = 1000
"""`retry:` of the stream: the time before an EventSource reconnects, below the grace period."""

MAX_STREAMS = 1000
"""Most resumable streams; further ones end with their connections."""

INSTANCE_BYTES = 9
"""Size of a gateway's random identity."""

_INSTANCE_LENGTH = INSTANCE_BYTES * 4 // 3

_INSTANCE = re.compile(rf"[A-Za-z0-9_-]{{{_INSTANCE_LENGTH}}}")

_MAX_DIGITS = 9


def is_instance(text: str) -> bool:
    """Whether `text` can be the identity of a gateway."""
    return _INSTANCE.fullmatch(text) is not None


class Place(NamedTuple):
    """A parsed `Last-Event-ID`."""

    stream: str
    """Empty if the stream cannot be resumed."""
    begin: int
    """Number of the next frame."""
    is_last: bool
    """Whether it was the last event."""


class Started(NamedTuple):
    """A stream that has started."""

    frames: AsyncGenerator[bytes]
    id_prefix: str


def parse_event_id(text: str, num_statuses: int = 0) -> Place:
    """Parse an event id. Raises HttpError (410) if it is not one of this gateway's.

    `num_statuses` is the number of `status` frames before that of the results, which have no ids.
    If there are any, one more follows the results.
    """
    stream, _, place = text.rpartition(".")
    if place in (COMPLETE, ERROR):
        return Place(stream, 0, True)
    if place == RESULTS:
        return Place(stream, num_statuses + 1, False)
    if place.isascii() and place.isdecimal() and len(place) <= _MAX_DIGITS:
        return Place(stream, int(place) + 2 + num_statuses + (num_statuses > 0), False)
    raise stream_gone()


def stream_gone() -> HttpError:
    """The error of a stream that cannot be resumed; an EventSource does not retry after 410."""
    message = "this stream has ended or cannot be resumed; search again"
    return HttpError(410, message, code="stream_gone")


def client_resumes(headers: Mapping[str, str]) -> bool:
    """Whether the client is an EventSource, which reconnects with `Last-Event-ID`."""
    asks_for_stream = headers.get("accept", "").strip().lower() == EVENT_STREAM
    return asks_for_stream and "no-cache" in headers.get("cache-control", "")


@dataclass(slots=True)
class _KeptStream:
    replay: ReplayBuffer
    key_name: str


class Elsewhere(Protocol):
    """The streams of other gateways, each named by its identity."""

    def resume(self, instance: str, place: Place) -> AsyncGenerator[bytes]:
        """The frames after `place`. Reading raises HttpError (410)."""
        ...

    async def stop(self, instance: str, stream: str) -> bool:
        """End a stream; False if it does not exist. Raises MeshError."""
        ...


class ResumableStreams:
    """The streams that can be resumed. Not thread-safe; `close` ends them."""

    def __init__(self, grace_seconds: float) -> None:
        """`grace_seconds` of 0 disables resumption."""
        self.instance = secrets.token_urlsafe(INSTANCE_BYTES)
        """The identity of this gateway."""
        self.elsewhere: Elsewhere | None = None
        self._grace_seconds = grace_seconds
        self._streams: dict[str, _KeptStream] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def accepts(self) -> bool:
        """Whether another stream can be kept."""
        return self._grace_seconds > 0 and len(self._streams) < MAX_STREAMS

    def start(self, make: Callable[[str], AsyncGenerator[bytes]]) -> Started:
        """Start the stream that `make` creates, given the prefix of its event ids."""
        stream = self.instance + secrets.token_urlsafe(16)
        id_prefix = f"{stream}."
        replay = ReplayBuffer(make(id_prefix), self._grace_seconds, lambda: self._forget(stream))
        self._streams[stream] = _KeptStream(replay, _key_name())
        return Started(replay.read(0), id_prefix)

    def resume(self, place: Place) -> AsyncGenerator[bytes]:
        """The frames after `place`, of whichever gateway. Raises HttpError (410), or reading it."""
        instance = place.stream[:_INSTANCE_LENGTH]
        if self.elsewhere is None or instance == self.instance:
            return self.resume_here(place)
        return self.elsewhere.resume(instance, place)

    async def stop(self, stream: str) -> bool:
        """End a stream, of whichever gateway, at once; False if it does not exist."""
        instance = stream[:_INSTANCE_LENGTH]
        if self.elsewhere is None or instance == self.instance:
            return self.stop_here(stream)
        return await self.elsewhere.stop(instance, stream)

    def resume_here(self, place: Place) -> AsyncGenerator[bytes]:
        """The frames after `place` of a stream of this gateway. Raises HttpError (410)."""
        kept = self._find(place.stream)
        if kept is None or not kept.replay.has(place.begin):
            metrics.STREAMS_RESUMED.labels("gone").inc()
            raise stream_gone()
        metrics.STREAMS_RESUMED.labels("resumed").inc()
        return kept.replay.read(place.begin)

    def stop_here(self, stream: str) -> bool:
        """End a stream of this gateway at once; False if it does not exist."""
        kept = self._find(stream)
        if kept is None:
            return False
        kept.replay.close()
        return True

    def cut_off(self, stream: str, error: Exception) -> None:
        """End a stream of this gateway, if it still exists; its reader gets `error`."""
        kept = self._streams.get(stream)
        if kept is not None:
            kept.replay.close(error)

    async def close(self) -> None:
        """End all streams and wait for them."""
        for kept in list(self._streams.values()):
            kept.replay.close()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _find(self, stream: str) -> _KeptStream | None:
        """A stream that was started with an API key can be resumed with the same key only."""
        kept = self._streams.get(stream)
        return kept if kept is not None and kept.key_name == _key_name() else None

    def _forget(self, stream: str) -> None:
        task = self._streams.pop(stream).replay.task
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _key_name() -> str:
    request = current_request()
    return "" if request is None else request.key_name
