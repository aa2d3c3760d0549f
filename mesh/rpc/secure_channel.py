"""A TLS channel that uses renewed certificates; a gRPC channel keeps its initial ones."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from mesh.rpc.tls import TlsError, TlsFiles, channel_credentials

logger = logging.getLogger("mesh.rpc.tls")

CHECK_SECONDS = 1.0
"""Minimum time between two checks of the files."""

OLD_CHANNEL_SECONDS = 15 * 60
"""Time after which a channel with an older certificate is closed."""

MakeChannel = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]


class _Method:
    """A method that calls the current channel."""

    def __init__(
        self, owner: ReloadingChannel, kind: str, path: str, arguments: dict[str, Any]
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._path = path
        self._arguments = arguments
        self._method = path.encode()  # as in grpc.aio's callables
        self._channel: grpc.aio.Channel | None = None
        self._callable: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        channel = self._owner.current()
        if channel is not self._channel:
            self._callable = getattr(channel, self._kind)(self._path, **self._arguments)
            self._channel = channel
        return self._callable(*args, **kwargs)


class ReloadingChannel(grpc.aio.Channel):
    """New calls use a channel with the newest certificates; running calls stay on theirs."""

    def __init__(self, files: TlsFiles, make: MakeChannel) -> None:
        """`make` opens a channel with the given credentials. Raises TlsError."""
        self._files = files
        self._watched = files.watched()
        self._make = make
        self._channel = make(channel_credentials(files))
        self._checked = time.monotonic()
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """The channel for a new call."""
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            if self._watched.changed():
                self._renew()
        return self._channel

    def _renew(self) -> None:
        try:
            channel = self._make(channel_credentials(self._files))
        except TlsError as error:
            logger.error("certificate not renewed", extra={"error": str(error)})
            return
        old, self._channel = self._channel, channel
        closing = asyncio.create_task(_close_later(old), name="close old channel")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        logger.info("certificate renewed")

    async def close(self, grace: float | None = None) -> None:
        """Close the current channel and the older ones."""
        for closing in list(self._closing):
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_unary", method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_stream", method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_unary", method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_stream", method, args, kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def _method(self, kind: str, path: str, args: Any, kwargs: Any) -> Any:
        names = ("request_serializer", "response_deserializer")
        return _Method(self, kind, path, {**dict(zip(names, args, strict=False)), **kwargs})


async def _close_later(channel: grpc.aio.Channel) -> None:
    # Not `close(grace)`, which leaves the channel open if it is cancelled.
    try:
        await asyncio.sleep(OLD_CHANNEL_SECONDS)
    finally:
        await channel.close()
