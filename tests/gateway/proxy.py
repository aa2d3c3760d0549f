"""A TCP proxy that loses connections when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Proxy:
    """Passes bytes on to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._upstream_port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.is_down = False
        """While set, new connections are refused."""
        self.num_refused = 0
        self.cut_behind: tuple[bytes, int] | None = None
        """Loses the connection once so many of these have passed on it to the client; then None."""

    def cut(self) -> int:
        """Resets every connection, as a network that fails does; gives their number."""
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        return len(writers)

    def _is_over(self) -> Callable[[bytes], bool]:
        """Whether a connection has passed on what it may; sees all that it passes on."""
        passed = bytearray()

        def is_over(data: bytes) -> bool:
            if self.cut_behind is None:
                return False
            passed.extend(data)
            mark, most = self.cut_behind
            if passed.count(mark) < most:
                return False
            self.cut_behind = None
            return True

        return is_over

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, both ways, until either side ends."""
        if self.is_down:
            self.num_refused += 1
            writer.transport.abort()
            return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        self._writers |= {writer, upstream}
        ways = [
            asyncio.create_task(_pass_on(reader, upstream)),
            asyncio.create_task(_pass_on(upstream_reader, writer, self._is_over())),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, upstream):
            self._writers.discard(each)
            each.close()


async def _pass_on(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    is_over: Callable[[bytes], bool] = lambda data: False,
) -> None:
    try:
        while data := await reader.read(256):
            writer.write(data)
            await writer.drain()
            if is_over(data):
                return
    except OSError:
        return  # one side is gone


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """A proxy of `port`."""
    made = Proxy(port)
    server = await asyncio.start_server(made.connect, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await server.wait_closed()
