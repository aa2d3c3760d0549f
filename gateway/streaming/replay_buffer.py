"""A stream of frames whose client may disconnect and resume.

    frames ── pump ──▶ buffer, at most MAX_BYTES ── read(begin) ──▶ the current client

Without a client the pump continues for a grace period, then the stream is ended. A complete
stream is kept as long, because its last frames may be lost with the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.observability import metrics
from mesh.errors import ErrorKind, MeshError

MAX_BYTES = 256 * 1024
"""Most bytes kept for a client that reconnects; older frames are dropped."""

MAX_UNREAD_BYTES = 32 * 1024
"""Most bytes read ahead of the client: the backpressure, also while it is disconnected."""


class ReplayBuffer:
    """One stream, independent of any request. The creator must call `close`."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        grace_seconds: float,
        on_end: Callable[[], object],
    ) -> None:
        """Takes ownership of `frames` and starts to read them, in the caller's context.

        `on_end` is called once, when the stream can no longer be resumed.
        """
        self._source = frames
        self._grace_seconds = grace_seconds
        self._on_end: Callable[[], object] | None = on_end
        self._frames: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_dropped = 0
        self._next = 0
        self._num_unread_bytes = 0
        self._error: BaseException | None = None
        self._reader: object | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_complete = False
        self._grown, self._taken = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._pump(), name="replay")
        self.task.add_done_callback(lambda _: self._grown.set())

    @property
    def num_frames(self) -> int:
        """Number of frames received so far, dropped ones included."""
        return self._num_dropped + len(self._frames)

    def has(self, begin: int) -> bool:
        """Whether the stream can be read from frame `begin`."""
        return self._num_dropped <= begin <= self.num_frames

    async def read(self, begin: int) -> AsyncGenerator[bytes]:
        """The frames from number `begin`, for which `has` must hold; raises the stream's error.

        A new reader ends the previous one. Closing it early starts the grace period.
        """
        me = self._reader = object()
        self._stop_timer()
        self._grown.set()  # wakes the previous reader, which then ends
        self._rewind(begin)
        try:
            while self._reader is me:
                if self._next < self.num_frames:
                    yield self._take()
                elif self.task.done():
                    self._is_complete = True
                    if self._error is not None:
                        raise self._error
                    return
                else:
                    self._grown.clear()
                    await self._grown.wait()
        finally:
            if self._reader is me:
                self._reader = None
                self._leave()

    def close(self, error: Exception | None = None) -> None:
        """End the stream; its reader gets `error`, by default MeshError (CANCELLED)."""
        self._stop_timer()
        if not self.task.done():
            self._error = error or MeshError(ErrorKind.CANCELLED, "the stream was stopped")
            self.task.cancel()
        if self._on_end is not None:
            self._on_end()
            self._on_end = None

    async def _pump(self) -> None:
        try:
            async with aclosing(self._source) as source:
                async for frame in source:
                    self._append(frame)
                    while self._num_unread_bytes > MAX_UNREAD_BYTES:
                        self._taken.clear()
                        await self._taken.wait()
        except Exception as error:
            self._error = error  # raised by `read`

    def _append(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._num_bytes += len(frame)
        self._num_unread_bytes += len(frame)
        while self._num_bytes > MAX_BYTES and self._num_dropped < self._next:
            self._num_bytes -= len(self._frames.popleft())
            self._num_dropped += 1
        self._grown.set()

    def _take(self) -> bytes:
        frame = self._frames[self._next - self._num_dropped]
        self._next += 1
        self._num_unread_bytes -= len(frame)
        self._taken.set()
        return frame

    def _rewind(self, begin: int) -> None:
        assert self.has(begin), "the caller must check `has`"
        self._next = begin
        unread = list(self._frames)[begin - self._num_dropped :]
        self._num_unread_bytes = sum(map(len, unread))
        self._taken.set()

    def _leave(self) -> None:
        """The client disconnected: start the grace period, or end a stream without frames left."""
        if self._next == 0:
            self.close()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._grace_seconds, self._expire)

    def _expire(self) -> None:
        if not self._is_complete:
            metrics.STREAMS_RESUMED.labels("expired").inc()
        self.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
