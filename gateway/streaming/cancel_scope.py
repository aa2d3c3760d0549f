"""Cancels a request's work when its client disconnects, its deadline passes or a drain ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.types import Receive

from gateway.http.drain import Drain
from gateway.http.errors import ClientDisconnected
from mesh.context import current_request
from mesh.errors import ErrorKind, MeshError

DEADLINE_MARGIN_SECONDS = 1.0
"""The upstream call has the same deadline and a more specific error, so it may fail first."""


class CancelScope:
    """A block that is cancelled early with a reason, similar to `asyncio.timeout`.

    Raises ClientDisconnected, or MeshError: DEADLINE or UNAVAILABLE. It reads `receive`, so the
    request's body must have been read before.
    """

    def __init__(
        self, receive: Receive, drain: Drain, is_answered: Callable[[], bool] = bool
    ) -> None:
        """`is_answered` returns whether the response is complete; a disconnect is expected then."""
        self._receive = receive
        self._is_answered = is_answered
        self._drain = drain
        self._open = False
        self._reason: Exception | None = None

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancelling = task.cancelling()
        self._open = True
        self._drain.register(self._interrupt)
        self._watcher = asyncio.create_task(self._watch_client(), name="disconnect")
        self._timer = self._start_timer()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        self._drain.unregister(self._interrupt)
        if self._timer is not None:
            self._timer.cancel()
        self._watcher.cancel()
        # Drop both references: an exception, also that of a task, references its stack frames,
        # and they reference this object. Only the garbage collector could free such a cycle.
        del self._watcher
        reason, self._reason = self._reason, None
        if reason is not None:
            others = self._task.uncancel() > self._num_cancelling
            if isinstance(error, asyncio.CancelledError) and not others:
                try:
                    raise reason from None
                finally:
                    del reason

    def _interrupt(self, reason: Exception) -> None:
        if self._open and self._reason is None:
            self._reason = reason
            self._task.cancel()

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # The server sends http.disconnect after a complete response as well.
        if not self._is_answered():
            self._interrupt(ClientDisconnected())

    def _start_timer(self) -> asyncio.TimerHandle | None:
        request = current_request()
        remaining = None if request is None else request.remaining()
        if remaining is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(remaining + DEADLINE_MARGIN_SECONDS, self._out_of_time)

    def _out_of_time(self) -> None:
        self._interrupt(MeshError(ErrorKind.DEADLINE, "the request's deadline has passed"))
