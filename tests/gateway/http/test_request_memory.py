"""A finished request leaves no reference cycles: reference counting frees its objects.

Collections of the older generations are rare (`mesh.process.garbage_collection.MIDDLE_SECONDS`):
a cycle of a few kilobytes per request would fill the memory until the next one.
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
    """Append to `found` the objects of the block that only the garbage collector can free."""
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


def of_requests(found: list[object]) -> list[str]:
    """Names of the objects and tasks in `found` that belong to one request.

    Objects of a gateway are not counted: that of an earlier test may be freed meanwhile.
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
    """Send a request; read the whole response, or disconnect after its first line."""
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
async def test_a_response_leaves_no_cycles(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """Neither a streamed nor a plain response leaves garbage."""
    orchestrator.script = Script(deltas=tuple("abc"))
    await request(gateway, name, whole=True)  # creates objects that later requests share
    found: list[object] = []
    with garbage(found):
        for _ in range(NUM_REQUESTS):
            await request(gateway, name, whole=True)
    assert of_requests(found) == []


@pytest.mark.parametrize("name", [name for name in REQUESTS if name.endswith("stream")])
async def test_a_disconnect_leaves_no_cycles(
    gateway: GatewayServer, orchestrator: FakeOrchestrator, name: str
) -> None:
    """The exception that ends the request is in no cycle with its stack frames."""
    orchestrator.script = Script(seconds_before_delta=0.01, endless=True)
    await request(gateway, name, whole=False)
    found: list[object] = []
    with garbage(found):
        for _ in range(NUM_REQUESTS):
            await request(gateway, name, whole=False)
    assert of_requests(found) == []
