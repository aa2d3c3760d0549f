"""A TCP proxy whose connections a test can drop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Proxy:
    """Forwards TCP connections to a local port."""

    def __init__(self, port: int) -> None:
        self._upstream_port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.is_down = False
        """While set, new connections are refused."""
        self.num_refused = 0
        self.cut_after: tuple[bytes, int] | None = None
        """(mark, count): drop the connection after `count` marks sent to its client; then None."""

    def cut(self) -> int:
        """Reset every connection, as a network failure does; return their number."""
        writers = list(self._writers)
        for writer in writers:
            writer.transport.abort()
        return len(writers)

    def _is_over(self) -> Callable[[bytes], bool]:
        """Make a predicate over a connection's data, which is true once `cut_after` is reached."""
        passed = bytearray()

        def is_over(data: bytes) -> bool:
            if self.cut_after is None:
                return False
            passed.extend(data)
            mark, most = self.cut_after
            if passed.count(mark) < most:
                return False
            self.cut_after = None
            return True

        return is_over

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection in both directions until either side closes it."""
        if self.is_down:
            self.num_refused += 1
            writer.transport.abort()
            return
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        self._writers |= {writer, upstream}
        directions = [
            asyncio.create_task(_forward(reader, upstream)),
            asyncio.create_task(_forward(upstream_reader, writer, self._is_over())),
        ]
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in directions:
            direction.cancel()
        for each in (writer, upstream):
            self._writers.discard(each)
            each.close()


async def _forward(
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
        return  # one side has closed the connection


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """Run a proxy to `port`."""
    made = Proxy(port)
    server = await asyncio.start_server(made.connect, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()
        await server.wait_closed()
