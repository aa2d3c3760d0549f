"""EventWriter on a fake transport that the test can block."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from gateway.http.errors import ClientDisconnected
from gateway.streaming.event_writer import MAX_PENDING_BYTES, EventWriter

pytestmark = pytest.mark.usefixtures("no_tasks_left")


class Transport:
    """Accepts messages while it is open; records the bodies."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.bodies: list[bytes] = []
        self.ended = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI send: like uvicorn's, it waits while the transport is blocked."""
        await self.open.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            self.ended = not message["more_body"]


@pytest.fixture
async def transport() -> Transport:
    return Transport()


async def test_pending_frames_are_sent_together(transport: Transport) -> None:
    """Frames are sent one by one, and in one send after the transport was blocked."""
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


async def test_a_blocked_transport_stops_the_producer(transport: Transport) -> None:
    """At most one chunk is being sent and one is pending."""
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


async def test_an_error_frame_is_dropped_after_a_timeout(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fail` returns after FAILURE_SECONDS if the client does not read."""
    monkeypatch.setattr("gateway.streaming.event_writer.FAILURE_SECONDS", 0.05)
    writer = EventWriter(transport.send, 60)
    writer.start(())
    transport.open.clear()
    await writer.fail(b"error")
    writer.close()
    assert transport.bodies == []
    assert not writer.complete


async def test_a_failed_send_is_a_disconnect() -> None:
    """An OSError of the server's `send` is raised as ClientDisconnected."""

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


async def test_no_keep_alive_after_the_last_frame(transport: Transport) -> None:
    """No keep-alive comment is sent after the last frame, nor while a frame is pending."""
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
