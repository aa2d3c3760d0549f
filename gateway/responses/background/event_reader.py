"""One reader of the events of a response in the background, from any number on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable

from gateway.conversations.store import RUNNING, ResponseStore, StoredResponse
from gateway.http.json_text import encode_line
from gateway.responses.background.event_log import EventLog, events_of, is_last
from gateway.responses.frames import Frames
from gateway.responses.items import Json
from gateway.streaming.sse import KEEP_ALIVE
from mesh.errors import HTTP_ERROR, ErrorKind, MeshError

POLL_SECONDS = 0.5
"""Interval in which the store is asked for events of a run at another gateway."""


class EventReader:
    """Reads from the run's log if it is at this gateway and has the events, else from the store.

    The run does not wait for its readers, of which there can be several.
    """

    def __init__(
        self,
        store: ResponseStore,
        owner: str,
        id: str,
        begin: int,
        find_log: Callable[[], EventLog | None],
    ) -> None:
        """`begin`: number of the first event; `find_log` returns the log while the run is here."""
        self._store = store
        self._key = owner, id
        self._begin = self._number = begin
        self._last = b""
        self._find_log = find_log

    async def frames(self) -> AsyncGenerator[bytes]:
        """The events up to the last one. Raises MeshError."""
        is_begun = False
        while not is_last(self._last):
            log = self._find_log()
            changed = None if log is None else log.next_change()
            events, may_grow = await self._next(log)
            if events:
                self._number += len(events)
                self._last = events[-1]
                is_begun = True
                yield b"".join(events)
            elif not may_grow:
                yield await self._missing_end() or KEEP_ALIVE
                return
            elif not is_begun:
                is_begun = True
                yield KEEP_ALIVE  # the client gets the status at once
            elif changed is not None:
                await changed.wait()
            else:
                await asyncio.sleep(POLL_SECONDS)

    def failed(self, error: MeshError) -> bytes:
        """The event of an error of the reading; the response itself may continue."""
        _, kind, code = HTTP_ERROR[error.kind]
        fields = {"code": code or kind, "message": error.message, "param": None}
        return Frames(self._number).event("error", **fields)

    async def _next(self, log: EventLog | None) -> tuple[list[bytes], bool]:
        """The next events, and whether more may follow."""
        live = None if log is None else log.read(self._number)
        if live is not None:
            return live, True
        found = await self._store.events(*self._key, self._number)
        if found is None:
            raise MeshError(ErrorKind.CANCELLED, "the response was deleted, or has expired")
        return events_of(found, self._number), found.is_running

    async def _missing_end(self) -> bytes:
        """The last event of a response whose run did not write one; empty if there is one.

        It was cancelled, or its gateway has stopped.
        """
        if self._number > 0 and not self._last:
            before = await self._store.events(*self._key, self._number - 1)
            known = [] if before is None else events_of(before, self._number - 1)
            if not known or is_last(known[0]):
                return b""  # the client has the last event
        stored = await self._store.get(*self._key)
        if stored is None:
            raise MeshError(ErrorKind.CANCELLED, "the response was deleted, or has expired")
        response = response_of(stored)
        return Frames(self._number).of_response(encode_line(response), str(response["status"]))


def response_of(stored: StoredResponse) -> Json:
    """The response object; one whose gateway has stopped has failed."""
    response: Json = json.loads(stored.response)
    if stored.abandoned and stored.status in RUNNING:
        message = "the gateway that generated the response has stopped"
        response |= {"status": "failed", "error": {"code": "server_error", "message": message}}
    return response
