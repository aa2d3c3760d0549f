"""Runs a gRPC server on a free port for a test, with a channel to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import grpc.aio

from mesh.rpc.channel import open_channel
from mesh.rpc.server import Server, Servicer
from mesh.rpc.targets import at_port


class Served(NamedTuple):
    """A running server, its address, and a channel to it."""

    server: Server
    address: str
    channel: grpc.aio.Channel


@asynccontextmanager
async def serve(*servicers: Servicer, listen: str = "127.0.0.1:0") -> AsyncIterator[Served]:
    """Serves on `listen`, ready at once; drains with a timeout of 0 at the end."""
    server = Server(servicers)
    port = await server.start(listen)
    await server.set_ready(True)
    address = at_port(listen, port)
    channel = open_channel(address)
    try:
        yield Served(server, address, channel)
    finally:
        await channel.close()
        await server.drain(timeout=0)


async def eventually(condition: Callable[[], bool], what: str, timeout: float = 5.0) -> None:
    """Waits until `condition()` is true; fails with `what` in its message."""
    try:
        async with asyncio.timeout(timeout):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never happened within {timeout} s: {what}") from None
