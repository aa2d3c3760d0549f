"""What a request leaves behind is freed at once, not when the garbage collector finds it.

It looks at what has lived for long so seldom
(`mesh.process.garbage_collection.MIDDLE_SECONDS`) that a few
kilobytes in a cycle, times the requests until then, would be all of the memory.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.http.errors import ClientDisconnected
from gateway.http.server import GatewayServer
from gateway.observability.request_record import RequestRecord
from gateway.streaming.cancel_scope import CancelScope
from gateway.streaming.event_stream import EventStream
from gateway.streaming.event_writer import EventWriter
from mesh.context import RequestContext
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.streaming.test_cancellation import REQUESTS, connection
from tests.helpers import eventually

NUM_REQUESTS = 5


@contextmanager
def garbage(found: list[object]) -> Iterator[None]:
    """Appends what only the collector could free of what the block made."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def ours(found: list[object]) -> list[str]:
    """What belongs to one request among them, and tasks of it, which hold much.

    A gateway of an earlier test may be freed meanwhile, so not everything of ours counts.
    """
    kinds = (
        EventStream,
        EventWriter,
        CancelScope,
        RequestRecord,
        RequestContext,
        ClientDisconnected,
    )
    tasks = [each.get_name() for each in found if isinstance(each, asyncio.Task)]
    return [type(each).__name__ for each in found if isinstance(each, kinds)] + [
        name for name in tasks if name in ("disconnect", "event writer")
    ]


async def request(gateway: GatewayServer, name: str, *, whole: bool) -> None:
    """Asks, and reads the answer to its end or leaves after its first line."""
    async with connection(gateway, name) as (reader, _):
        if whole:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"chunked" in head:
                body = b""
                while not body.endswith(b"\r\n0\r\n\r\n"):
                    body += await reader.read(1024)
            else:
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        else:
            await reader.readline()
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")
    await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", REQUESTS)
async def test_an_answer_leaves_nothing(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """Streamed or not."""
    orchestrator.script = Script(deltas=tuple("abc"))
    await request(gateway, name, whole=True)  # makes what is made once
    found: list[object] = []
    with garbage(found):
        for _ in range(NUM_REQUESTS):
            await request(gateway, name, whole=True)
    assert ours(found) == []


@pytest.mark.parametrize("name", [name for name in REQUESTS if name.endswith("stream")])
async def test_a_client_that_leaves_takes_everything_along(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """The error that ends its request holds no frames, and they not the error."""
    orchestrator.script = Script(seconds_before_delta=0.01, endless=True)
    await request(gateway, name, whole=False)
    found: list[object] = []
    with garbage(found):
        for _ in range(NUM_REQUESTS):
            await request(gateway, name, whole=False)
    assert ours(found) == []
