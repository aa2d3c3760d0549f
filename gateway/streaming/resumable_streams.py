"""Search streams that can be resumed: which they are, and what the ids of their events mean.

A client that comes back on its own, an EventSource, says so: it asks for an event stream that no
cache may answer. Others say `resumable=true`. Their events have ids `STREAM.PLACE`, so that
`Last-Event-ID` names the stream as well as the place in it. Everybody else's have the place
alone: such a stream ends with its connection.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gateway.http.errors import HttpError
from gateway.observability import metrics
from gateway.streaming.replay_buffer import ReplayBuffer
from mesh.context import current_request

RESULTS, COMPLETE, ERROR = "results", "complete", "error"
"""Places of the events that are no tokens; a token's place is its position."""

RETRY_MILLISECONDS = 1000
"""How long an EventSource is to wait before it comes back: less than the grace."""

MAX_STREAMS = 1000
"""Most streams that are kept; beyond it new ones end with their connections."""

_MAX_DIGITS = 9


class Place(NamedTuple):
    """What a `Last-Event-ID` says."""

    stream: str
    """Empty: one that cannot be resumed."""
    begin: int
    """The number of the frame behind it."""
    is_last: bool
    """Nothing came behind it."""


class Started(NamedTuple):
    """A stream that has begun."""

    frames: AsyncGenerator[bytes]
    id_prefix: str


def parse_event_id(text: str) -> Place:
    """Where the event with this id stood. Raises HttpError (410) where it was none of ours."""
    stream, _, place = text.rpartition(".")
    if place in (COMPLETE, ERROR):
        return Place(stream, 0, True)
    if place == RESULTS:
        return Place(stream, 1, False)
    if place.isascii() and place.isdecimal() and len(place) <= _MAX_DIGITS:
        return Place(stream, int(place) + 2, False)
    raise gone()


def gone() -> HttpError:
    """There is nothing to continue; an EventSource does not ask again after this."""
    message = "this stream has ended or cannot be resumed; search again"
    return HttpError(410, message, code="stream_gone")


def client_resumes(headers: Mapping[str, str]) -> bool:
    """Whether a client is one that reconnects with `Last-Event-ID`: an EventSource."""
    asks_for_stream = headers.get("accept", "").strip() == "text/event-stream"
    return asks_for_stream and "no-cache" in headers.get("cache-control", "")


@dataclass(slots=True)
class _KeptStream:
    replay: ReplayBuffer
    key_name: str


class ResumableStreams:
    """The streams that can be resumed now. For one event loop; `close` ends them."""

    def __init__(self, grace_seconds: float) -> None:
        """`grace_seconds` 0: no stream can be resumed."""
        self._grace_seconds = grace_seconds
        self._streams: dict[str, _KeptStream] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def accepts(self) -> bool:
        """Whether one more can be kept."""
        return self._grace_seconds > 0 and len(self._streams) < MAX_STREAMS

    def start(self, make: Callable[[str], AsyncGenerator[bytes]]) -> Started:
        """Begins to read what `make` makes, given what the ids of its events begin with."""
        stream = secrets.token_urlsafe(16)
        id_prefix = f"{stream}."
        replay = ReplayBuffer(make(id_prefix), self._grace_seconds, lambda: self._forget(stream))
        self._streams[stream] = _KeptStream(replay, _key_name())
        return Started(replay.read(0), id_prefix)

    def resume(self, place: Place) -> AsyncGenerator[bytes]:
        """The frames behind `place`. Raises HttpError (410)."""
        kept = self._find(place.stream)
        if kept is None or not kept.replay.has(place.begin):
            metrics.STREAMS_RESUMED.labels("gone").inc()
            raise gone()
        metrics.STREAMS_RESUMED.labels("resumed").inc()
        return kept.replay.read(place.begin)

    def stop(self, stream: str) -> bool:
        """Ends a stream at once; False if there is none of this name."""
        kept = self._find(stream)
        if kept is None:
            return False
        kept.replay.close()
        return True

    async def close(self) -> None:
        """Ends all streams, and returns when they have."""
        for kept in list(self._streams.values()):
            kept.replay.close()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _find(self, stream: str) -> _KeptStream | None:
        """Whoever began a stream with a key must come back with it."""
        kept = self._streams.get(stream)
        return kept if kept is not None and kept.key_name == _key_name() else None

    def _forget(self, stream: str) -> None:
        task = self._streams.pop(stream).replay.task
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def _key_name() -> str:
    request = current_request()
    return "" if request is None else request.key_name
