"""The writer alone, on a transport that the test opens and closes."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gateway.http.errors import ClientDisconnected
from gateway.streaming.event_writer import MAX_PENDING_BYTES, EventWriter

pytestmark = pytest.mark.usefixtures("no_tasks_left")


class Transport:
    """Takes messages while it is open."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.bodies: list[bytes] = []
        self.ended = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """As uvicorn's: returns once there is room."""
        await self.open.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.ended = not message["more_body"]


@pytest.fixture
async def transport() -> Transport:
    return Transport()


async def test_what_is_ready_goes_out_together(transport: Transport) -> None:
    """Alone while the transport takes everything, in one send after it did not."""
    writer = EventWriter(transport.send, 60)
    writer.start(())
    for frame in (b"1", b"2"):
        await writer.write(frame)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    transport.open.clear()
    for frame in (b"3", b"4", b"5"):
        await writer.write(frame)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    transport.open.set()
    await writer.finish()
    writer.close()
    assert transport.bodies == [b"1", b"2", b"3", b"45"]
    assert transport.ended
    assert writer.complete


async def test_a_closed_transport_stops_the_producer(transport: Transport) -> None:
    """At most one chunk on its way and one being built, whatever the producer has."""
    writer = EventWriter(transport.send, 60)
    writer.start(())
    transport.open.clear()
    num_written = 0

    async def produce() -> None:
        nonlocal num_written
        while True:
            await writer.write(b"x" * 1000)
            num_written += 1
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(produce(), 0.1)
    assert num_written * 1000 <= 2 * MAX_PENDING_BYTES
    writer.close()


async def test_an_error_that_nobody_takes_is_given_up(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a stream waits only so long for its client."""
    monkeypatch.setattr("gateway.streaming.event_writer.FAILURE_SECONDS", 0.05)
    writer = EventWriter(transport.send, 60)
    writer.start(())
    transport.open.clear()
    await writer.fail(b"error")
    writer.close()
    assert transport.bodies == []
    assert not writer.complete


async def test_a_transport_that_breaks_is_a_client_that_left() -> None:
    """Servers that raise from send are understood as well."""

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise OSError("broken pipe")

    writer = EventWriter(send, 60)
    writer.start(())
    await writer.write(b"1")
    await asyncio.sleep(0.01)
    with pytest.raises(ClientDisconnected):
        await writer.write(b"2")
    writer.close()


async def test_nothing_fills_the_silence_of_a_finished_stream(transport: Transport) -> None:
    """A comment never follows the last event, nor overtakes one that waits."""
    writer = EventWriter(transport.send, 0.02)
    writer.start(())
    transport.open.clear()
    await writer.write(b"1")
    await asyncio.sleep(0.1)
    transport.open.set()
    await writer.finish()
    await asyncio.sleep(0.05)
    writer.close()
    assert b"".join(transport.bodies) == b"1"
