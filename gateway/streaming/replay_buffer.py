"""A stream of frames that its client may leave and come back to.

    frames ── pump ──▶ buffer, at most MAX_BYTES ── read(begin) ──▶ the client of the moment

Without a client the pump runs on for a short grace, then the stream is ended. What has been sent
to its end is kept as long: what was sent last may be lost with the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from gateway.observability import metrics
from mesh.errors import ErrorKind, MeshError

MAX_BYTES = 256 * 1024
"""Most that is kept for a client that comes back; older frames are dropped."""

MAX_UNREAD_BYTES = 32 * 1024
"""Most that is read ahead of the client: the backpressure, with or without one."""


class ReplayBuffer:
    """One stream. It belongs to nobody's request: whoever makes it calls `close` in the end."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        grace_seconds: float,
        on_end: Callable[[], object],
    ) -> None:
        """Owns `frames`, and begins to read them at once, in the caller's context.

        `on_end` is called once, when nobody can come back any more.
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
        """How many frames have come so far, dropped ones included."""
        return self._num_dropped + len(self._frames)

    def has(self, begin: int) -> bool:
        """Whether the stream can be read from frame `begin` on."""
        return self._num_dropped <= begin <= self.num_frames

    async def read(self, begin: int) -> AsyncGenerator[bytes]:
        """The frames from number `begin` on, for which `has` holds; raises what broke them.

        Whoever reads now ends the reading of who did before. Leaving it early starts the grace.
        """
        me = self._reader = object()
        self._stop_timer()
        self._grown.set()  # the reader before sees that it is none any more
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

    def close(self) -> None:
        """Ends the stream; whoever reads it is told so."""
        self._stop_timer()
        if not self.task.done():
            self._error = MeshError(ErrorKind.CANCELLED, "the stream was stopped")
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
            self._error = error  # told to whoever reads

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
        assert self.has(begin), "the caller has looked"
        self._next = begin
        unread = list(self._frames)[begin - self._num_dropped :]
        self._num_unread_bytes = sum(map(len, unread))
        self._taken.set()

    def _leave(self) -> None:
        """The client has gone; for good, if it has nothing that it could continue."""
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
