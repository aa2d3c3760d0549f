"""Writes a stream of frames with backpressure from the client.

    one frame being built ── write() ──▶ pending, at most 16 KiB ── one send ──▶ transport
                         └── write_now(), while nothing is pending ──────────────▶

While the transport accepts data, each frame is sent alone. When it does not, frames accumulate
up to the limit; then `write` waits, and with it the producer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Send

from gateway.connection.chunk_writer import ChunkWriter
from gateway.http.errors import ClientDisconnected
from gateway.streaming.sse import KEEP_ALIVE

MAX_PENDING_BYTES = 16 * 1024
FAILURE_SECONDS = 1.0
"""Time that a client has to receive the error that ends its stream."""

Headers = Sequence[tuple[bytes, bytes]]


class EventWriter:
    """The sending side of one stream. The creator must call `close`.

    Sends `keep_alive_frame` after every `keep_alive_seconds` without a frame.
    """

    def __init__(
        self,
        send: Send,
        keep_alive_seconds: float,
        keep_alive_frame: bytes = KEEP_ALIVE,
        chunks: ChunkWriter | None = None,
    ) -> None:
        """`chunks` writes to the connection at once; None: it cannot."""
        self._send = send
        self._chunks = chunks
        self._keep_alive_frame = keep_alive_frame
        self._keep_alive_seconds = keep_alive_seconds
        self._pending: list[bytes] = []
        self._num_pending_bytes = 0
        self._data = asyncio.Event()
        self._room = asyncio.Event()
        self._finishing = False
        self._sending = True
        """Whether `send` has been called and has not returned; at the beginning, with the head."""
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_sent = 0.0
        self.complete = False
        """Whether the whole stream has been passed to the transport."""

    @property
    def started(self) -> bool:
        """Whether the status has been sent."""
        return self._task is not None

    def start(self, headers: Headers, *, alive: bool = False) -> None:
        """Send status 200 and the headers, together with the frames written meanwhile.

        `alive`: send a keep-alive frame at once.
        """
        if alive:
            self._put(self._keep_alive_frame)
        self._loop = asyncio.get_running_loop()
        self._last_sent = self._loop.time()
        self._task = asyncio.create_task(self._run(headers), name="event writer")
        self._timer = self._loop.call_later(self._keep_alive_seconds, self._keep_alive)

    async def write(self, frame: bytes) -> None:
        """Queue a frame; waits while too much is pending. Raises the exception of a failed send."""
        if self._num_pending_bytes >= MAX_PENDING_BYTES:
            self._room.clear()
            await self._room.wait()
        if self._task is not None and self._task.done():
            self._task.result()
        self._put(frame)

    @property
    def takes_now(self) -> bool:
        """Whether `write_now` may be called: nothing is pending, and the connection takes data."""
        chunks = self._chunks
        return (
            chunks is not None
            and not (self._sending or self._pending or self._finishing)
            and chunks.takes_now
        )

    def write_now(self, frame: bytes) -> None:
        """Pass a frame to the transport at once; `takes_now` must be true."""
        assert self._chunks is not None, "takes_now is false"
        self._chunks.write(frame)
        self._last_sent = self._loop.time()

    async def finish(self) -> None:
        """Wait until everything has been passed to the transport."""
        self._finishing = True
        self._data.set()
        assert self._task is not None, "finish before start"
        await asyncio.shield(self._task)

    async def fail(self, frame: bytes) -> None:
        """End the stream with `frame`, unless the client does not read it in time."""
        self._put(frame)
        try:
            async with asyncio.timeout(FAILURE_SECONDS):
                await self.finish()
        except TimeoutError:
            return

    def close(self) -> None:
        """Cancel the sending task and the timer."""
        if self._timer is not None:
            self._timer.cancel()
        # Drop the task: its exception references stack frames, which reference this object.
        task, self._task = self._task, None
        if task is not None and not task.cancel() and not task.cancelled():
            task.exception()  # `write` or `finish` has raised it, if either was called

    def _put(self, frame: bytes) -> None:
        self._pending.append(frame)
        self._num_pending_bytes += len(frame)
        self._data.set()

    async def _run(self, headers: Headers) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": list(headers)}
        try:
            await self._send(start)
            self._sending = False
            while not self.complete:
                await self._data.wait()
                await self._flush()
        except OSError:
            raise ClientDisconnected from None
        finally:
            self._room.set()

    async def _flush(self) -> None:
        self._data.clear()
        body = b"".join(self._pending)
        self._pending.clear()
        self._num_pending_bytes = 0
        self._room.set()
        last = self._finishing
        self._sending = True
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
        self._sending = False
        self._last_sent = self._loop.time()
        self.complete = last

    def _keep_alive(self) -> None:
        # One timer for each stream, not for each frame: it checks when the last frame was sent.
        silence = self._loop.time() - self._last_sent
        if silence >= self._keep_alive_seconds:
            if not (self._sending or self._pending or self._finishing):
                self._put(self._keep_alive_frame)
            silence = 0.0
        self._timer = self._loop.call_later(self._keep_alive_seconds - silence, self._keep_alive)
