"""A response of server-sent events whose status is sent with the first frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial

from starlette.types import Receive, Scope, Send

from gateway.connection.chunk_writer import ChunkWriter
from gateway.http.drain import Drain
from gateway.http.errors import ClientDisconnected
from gateway.observability import metrics
from gateway.observability.request_record import RequestRecord
from gateway.streaming.cancel_scope import CancelScope
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_writer import EventWriter
from gateway.streaming.sse import KEEP_ALIVE
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError

logger = logging.getLogger("gateway.stream")

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Makes nginx and similar proxies forward each event at once.
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """Sends `frames`, which it owns and always closes.

    An exception before the first frame is raised, so that it gets its HTTP status; a later one
    becomes the last event, encoded by `error_frame`. If the first frame takes longer than
    `keep_alive_seconds`, such as while an engine starts, the response begins with comments: proxies
    would close a silent connection.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        error_frame: Callable[[MeshError], bytes],
        drain: Drain,
        keep_alive_seconds: float,
        keep_alive_frame: bytes = KEEP_ALIVE,
        direct: DirectPath | None = None,
    ) -> None:
        """`direct` passes deltas to the response's writer; None: all come from `frames`."""
        self._direct = direct
        self._frames = frames
        self._error_frame = error_frame
        self._drain = drain
        self._keep_alive = (keep_alive_seconds, keep_alive_frame)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response. Raises ClientDisconnected if the client disconnects."""
        writer = EventWriter(send, *self._keep_alive, ChunkWriter.of(scope))
        if self._direct is not None:
            self._direct.writer = writer
        try:
            await self._send(writer, receive)
        except ClientDisconnected:
            if not writer.complete:
                raise
        except Exception as error:
            if not writer.started:
                raise
            failure = _as_mesh_error(error)
            RequestRecord.of(scope).fail(failure)
            await writer.fail(self._error_frame(failure))
        finally:
            writer.close()

    async def _send(self, writer: EventWriter, receive: Receive) -> None:
        cancel_scope = CancelScope(receive, self._drain, lambda: writer.complete)
        async with cancel_scope, aclosing(self._frames) as frames:
            waiting = asyncio.get_running_loop().call_later(
                self._keep_alive[0], partial(writer.start, HEADERS, alive=True)
            )
            try:
                first = await anext(frames)
            finally:
                waiting.cancel()
            with metrics.STREAMS_ACTIVE.track_inprogress():
                if not writer.started:
                    writer.start(HEADERS)
                await writer.write(first)
                async for frame in frames:
                    await writer.write(frame)
                await writer.finish()


def _as_mesh_error(error: Exception) -> MeshError:
    if isinstance(error, MeshError):
        return error
    logger.error("unexpected error in mid-stream", exc_info=error)
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
