"""uvicorn's server without signal handlers, with limits on TLS handshakes and unread responses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from gateway.connection.input_turns import InputTurns
from gateway.connection.protocol import LimitedProtocol

TICK_SECONDS = 1.0
"""Interval of updates of the date header and of checks for clients that do not read."""

TLS_HANDSHAKE_SECONDS = 10.0
"""Time from the connection to the end of the TLS handshake, as for headers."""

CLOSED_CHECK_SECONDS = 0.01
"""Interval of checks for open connections during shutdown."""


class UvicornServer(uvicorn.Server):
    """A uvicorn server that can abort clients that do not read."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop = asyncio.Event()
        self._draining = False

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on `sockets`. uvicorn has no setting for the handshake's timeout."""
        loop = asyncio.get_running_loop()
        context, turns = self.config.ssl, InputTurns()
        self.servers = [
            await loop.create_server(
                lambda: LimitedProtocol(self.config, self.server_state, turns),
                sock=each,
                backlog=self.config.backlog,
                ssl=context,
                ssl_handshake_timeout=None if context is None else TLS_HANDSHAKE_SECONDS,
            )
            for each in sockets or ()
        ]
        self.started = True

    async def main_loop(self) -> None:
        """Update the date header and check the clients once a second until `stop` is called."""
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            await self.on_tick(0)
            for connection in self._connections():
                connection.check_reader(loop.time())
            if self._draining:
                self._close_after_responses()
            try:
                await asyncio.wait_for(self._stop.wait(), TICK_SECONDS)
            except TimeoutError:
                continue

    def begin_drain(self) -> None:
        """Close idle connections, and others after their response: new ones reach other pods.

        A client that reuses its connection would get 503 again and again during the drain.
        """
        self._draining = True
        self._close_after_responses()

    def _close_after_responses(self) -> None:
        for connection in self._connections():
            connection.shutdown()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening and wait until all connections are closed."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        self._close_after_responses()
        # uvicorn has no notification for the last closed connection.
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(CLOSED_CHECK_SECONDS)

    def stop(self) -> None:
        """End `main_loop`, so that `serve` shuts down."""
        self._stop.set()

    def abort_connections(self) -> None:
        """Abort every connection; requests see a disconnected client."""
        for connection in self._connections():
            connection.transport.abort()

    def _connections(self) -> list[LimitedProtocol]:
        return [each for each in self.server_state.connections if isinstance(each, LimitedProtocol)]
