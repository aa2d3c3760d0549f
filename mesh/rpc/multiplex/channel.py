"""A channel whose frequent calls go through one stream, once the server has accepted it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
import grpc.aio

from mesh.rpc.multiplex.caller import CallerStream, MultiplexedCall, MultiplexedUnaryCall
from mesh.rpc.multiplex.wire import MAX_REQUEST_BYTES, MULTIPLEXED_PATHS, PATH
from mesh.v1 import multiplex_pb2

logger = logging.getLogger("mesh.rpc.multiplex")

STREAM_SECONDS = 5 * 60
"""Age at which a stream is replaced, so that calls follow the channel to a new connection. With
the longest request it is less than the time for which a server keeps an old connection."""

RETRY_SECONDS = 1.0
"""Least time between two attempts to open a stream."""

UNIMPLEMENTED_SECONDS = 60.0
"""The same, for a server that has no multiplexed streams."""

ACCEPT_SECONDS = 5.0
"""Time in which a server must accept a stream."""


class MultiplexChannel(grpc.aio.Channel):
    """Makes calls of `MULTIPLEXED_PATHS` in one stream, all others as `channel` does.

    The first call opens the stream; it and others are plain calls until the stream is accepted.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """`channel` is closed with this one."""
        self._plain = channel
        self._open: Any = channel.stream_stream(
            PATH,
            multiplex_pb2.MultiplexRequest.SerializeToString,
            multiplex_pb2.MultiplexResponse.FromString,
        )
        self._stream: CallerStream | None = None
        self._opening = False
        self._next_attempt = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def stream(self) -> CallerStream | None:
        """The stream for a call that begins now; None: make it as a plain one."""
        stream, now = self._stream, time.monotonic()
        age = 0.0 if stream is None else now - stream.opened
        if stream is None or stream.lost or age > STREAM_SECONDS:
            self._replace(now)
        # While the channel was idle, the server may have begun to close the stream's connection.
        is_usable = stream is not None and stream.takes_calls
        return stream if is_usable and age <= STREAM_SECONDS + ACCEPT_SECONDS else None

    def _replace(self, now: float) -> None:
        if self._opening or self._closed or now < self._next_attempt:
            return
        self._opening = True
        self._next_attempt = now + RETRY_SECONDS
        task = asyncio.create_task(self._run(), name="multiplexed stream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        """Opens a stream, lets new calls use it, and serves it to its end."""
        call = self._open()
        try:
            try:
                async with asyncio.timeout(ACCEPT_SECONDS):
                    accepted = await call.read()
            finally:
                self._opening = False
            if accepted is grpc.aio.EOF:
                return
            stream, old = CallerStream(call, accepted), self._stream
            self._stream = stream
            if old is not None:
                old.retire()
            await stream.run()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._next_attempt = time.monotonic() + UNIMPLEMENTED_SECONDS
            logger.debug("no multiplexed stream", extra={"error": error.details()})
        except TimeoutError:
            logger.debug("no multiplexed stream", extra={"error": "not accepted in time"})
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The channel was closed.
        finally:
            call.cancel()

    async def close(self, grace: float | None = None) -> None:
        """End the stream with its calls, and close the channel."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._plain.close(grace)

    async def __aenter__(self) -> MultiplexChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_unary", MultiplexedUnaryCall, method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_stream", MultiplexedCall, method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._plain.stream_unary(method, *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._plain.stream_stream(method, *args, **kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._plain.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._plain.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._plain.channel_ready()

    def _method(
        self,
        name: str,
        kind: type[MultiplexedCall],
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        plain = getattr(self._plain, name)(path, *args, **kwargs)
        if path not in MULTIPLEXED_PATHS:
            return plain
        names = ("request_serializer", "response_deserializer")
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        return MultiplexedMethod(self, plain, kind, path, *map(arguments.get, names))


class MultiplexedMethod:
    """A method of a stub: its calls go into the stream if that is open."""

    def __init__(
        self,
        channel: MultiplexChannel,
        plain: Any,
        kind: type[MultiplexedCall],
        path: str,
        serialize: Any,
        deserialize: Any,
    ) -> None:
        self._multiplex = channel
        self._plain = plain
        self._kind = kind
        self._path = path
        self._serialize = serialize
        self._deserialize = deserialize
        # As in grpc.aio's callables.
        self._method = path.encode()

    @property
    def _channel(self) -> Any:
        return getattr(self._plain, "_channel", None)

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        stream = None if options else self._multiplex.stream()
        if stream is not None and self._path in stream.paths:
            data = self._serialize(request)
            if len(data) <= MAX_REQUEST_BYTES:
                return stream.begin(
                    self._path, data, metadata or (), timeout, self._deserialize, self._kind
                )
        return self._plain(request, timeout=timeout, metadata=metadata, **options)
