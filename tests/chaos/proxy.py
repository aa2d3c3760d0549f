"""A TCP proxy that delays, resets and silences connections on command."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Listens on a local port and forwards to `target`, HOST:PORT."""

    def __init__(self, port: int = 0) -> None:
        """0: a free port, which `port` has inside `running`."""
        self.port = port
        self.target = ""
        self.delay = 0.0
        """Delay in seconds of each read, in both directions."""
        self.silent = False
        """Drops what arrives: each end sees a peer that accepts bytes and never answers."""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """The proxy's own address, HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def reset(self) -> int:
        """Resets all connections (TCP RST); returns their number."""
        writers = list(self._writers)
        for writer in writers:
            # SO_LINGER with a timeout of 0 makes close() send RST instead of FIN.
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        return len(writers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Runs the proxy inside the block."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.reset()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        both = {writer, up_writer}
        self._writers |= both
        try:
            await asyncio.gather(
                self._pump(reader, up_writer), self._pump(up_reader, writer), return_exceptions=True
            )
        except asyncio.CancelledError:
            return  # at shutdown; asyncio's callback would log the exception
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if self.silent:
                    continue
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
