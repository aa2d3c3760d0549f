"""A small TCP proxy that spoils connections on command."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Listens on an address of its own and forwards to `target`, HOST:PORT."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.target = ""
        self.delay = 0.0
        """Seconds by which each piece is held up, either way."""
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """Where callers connect."""
        return f"127.0.0.1:{self.port}"

    def reset(self) -> int:
        """Breaks every connection with a reset; gives their number."""
        writers = list(self._writers)
        for writer in writers:
            # Lingering for no time makes the close a reset instead of an orderly end.
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        return len(writers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Forwards inside the block."""
        server = await asyncio.start_server(self._forward, "127.0.0.1", self.port)
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
            return  # the loop ends; asyncio's own callback would log it as a failure
        finally:
            self._writers -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(piece)
                await writer.drain()
        finally:
            writer.close()
