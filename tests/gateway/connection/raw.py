"""Raw connections to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.http.server import GatewayServer


@asynccontextmanager
async def connected(
    server: GatewayServer,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed at the end of the block."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def exchange(
    server: GatewayServer, *pieces: bytes, pause: float = 0.0, half_close: bool = False
) -> bytes:
    """Send the pieces; return everything received until the server closes the connection."""
    async with connected(server) as (reader, writer):
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                if pause:
                    await asyncio.sleep(pause)
            if half_close:
                writer.write_eof()
        except ConnectionError:
            pass
        return await read_all(reader)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Read until the server closes the connection."""
    got = b""
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                got += piece
    except ConnectionError:
        pass
    return got


async def send_until_closed(writer: asyncio.StreamWriter, piece: bytes, pause: float = 0.0) -> int:
    """Send `piece` until the server closes the connection; return the number of bytes."""
    num_bytes = 0
    async with asyncio.timeout(10):
        while True:
            try:
                writer.write(piece)
                await writer.drain()
            except ConnectionError:
                return num_bytes
            num_bytes += len(piece)
            await asyncio.sleep(pause)


def num_connections(server: GatewayServer) -> int:
    """Number of open connections."""
    return len(server._server.server_state.connections)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """A request with a body; without `headers` it has a Content-Length."""
    lines = headers or (f"content-length: {len(body)}",)
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *lines])
    return head.encode() + b"\r\n\r\n" + body


def chunked(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """A body in chunks, without the last one."""
    pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
