"""Search streams that resume after a disconnect; other streams end with their connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.http.server import GatewayServer
from mesh.errors import ErrorKind, MeshError
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.sse import Event, events
from tests.helpers import eventually

SEARCH = "/api/v1/search?query=AI&streaming=true"
EVENT_SOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}
"""The headers of a browser's EventSource."""

DELTAS = [f"{number} " for number in range(40)]


@asynccontextmanager
async def reading(
    client: httpx.AsyncClient, *, last: str = "", url: str = SEARCH, **headers: str
) -> AsyncIterator[AsyncIterator[Event]]:
    """Read the events of one connection, which is closed at the end of the block."""
    sent = {**EVENT_SOURCE, **headers, **({"last-event-id": last} if last else {})}
    async with client.stream("GET", url, headers=sent) as response:
        assert response.status_code == 200, await response.aread()
        yield events(response)


async def take(stream: AsyncIterator[Event], number: int) -> list[Event]:
    """Read the next `number` events."""
    return [await anext(stream) for _ in range(number)]


def text_of(received: list[Event]) -> str:
    """The text of the token events."""
    return "".join(event.data["token"] for event in received if event.name == "token")


async def test_every_event_has_an_id(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """An id is the place; in a resumable stream it has the prefix `STREAM.`."""
    orchestrator.script = Script(deltas=["a", "b"])
    async with client.stream("GET", SEARCH) as response:
        plain = [event async for event in events(response)]
    async with reading(client) as stream:
        resumable = [event async for event in stream]
    assert [event.id for event in plain] == ["results", "0", "1", "complete"]
    names = {(event.id or "").rpartition(".")[0] for event in resumable}
    assert len(names) == 1
    [name] = names
    assert len(name) >= 20
    assert [event.id for event in resumable] == [f"{name}.{event.id}" for event in plain]
    assert [event.name for event in resumable] == [event.name for event in plain]


async def test_resuming_loses_no_event(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """After five disconnects no token is lost or doubled; there is one upstream call."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.01)
    received: list[Event] = []
    last = ""
    for number in (1, 3, 1, 10, 7):
        async with reading(client, last=last) as stream:
            received += await take(stream, number)
        last = received[-1].id or ""
    async with reading(client, last=last) as stream:
        received += [event async for event in stream]
    assert text_of(received) == "".join(DELTAS)
    assert [event.name for event in received] == ["search_results", *["token"] * 40, "complete"]
    assert len(orchestrator.requests) == 1


async def test_events_are_sent_again_from_the_last_event_id(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Events that were sent but lost are replayed, also after the end of the stream."""
    orchestrator.script = Script(deltas=DELTAS)
    async with reading(client) as stream:
        whole = [event async for event in stream]
    for place in (0, 5, 40):
        async with reading(client, last=whole[place].id or "") as stream:
            again = [event async for event in stream]
        assert [event.text for event in again] == [event.text for event in whole[place + 1 :]]
    assert len(orchestrator.requests) == 1


async def test_generation_continues_without_a_client(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """During the grace period the generation completes, and its events are kept."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.005)
    async with reading(client) as stream:
        first = await take(stream, 3)
    await eventually(lambda: orchestrator.num_running == 0, "the generation ends")
    assert orchestrator.num_cancelled == 0
    async with reading(client, last=first[-1].id or "") as stream:
        rest = [event async for event in stream]
    assert text_of(first + rest) == "".join(DELTAS)


async def test_reconnecting_after_the_last_event_is_204(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """An EventSource reconnects after the end; 204 stops it, and no generation starts."""
    async with reading(client) as stream:
        whole = [event async for event in stream]
    assert len(gateway.dependencies.resumable_streams) == 1
    headers = {**EVENT_SOURCE, "last-event-id": whole[-1].id or ""}
    response = await client.get(SEARCH, headers=headers)
    assert (response.status_code, response.content) == (204, b"")
    assert len(gateway.dependencies.resumable_streams) == 0
    plain = await client.get(SEARCH, headers={"last-event-id": "complete"})
    assert plain.status_code == 204
    assert len(orchestrator.requests) == 1


async def test_a_stream_ends_after_the_grace_period(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """The call is cancelled after the grace period; resuming later is a 410."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with start_gateway(resume_seconds=1) as server, client_of(server) as client:
        async with reading(client) as stream:
            first = await take(stream, 5)
        disconnected = time.monotonic()
        await asyncio.sleep(0.2)
        assert orchestrator.num_cancelled == 0
        await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
        assert time.monotonic() - disconnected > 0.9
        assert len(server.dependencies.resumable_streams) == 0
        headers = {**EVENT_SOURCE, "last-event-id": first[-1].id or ""}
        late = await client.get(SEARCH, headers=headers)
        assert late.status_code == 410
        assert late.json()["error"]["code"] == "stream_gone"
    assert len(orchestrator.requests) == 1


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"accept": "*/*"}, SEARCH),
        ({"accept": "text/event-stream"}, SEARCH),
        (EVENT_SOURCE, SEARCH + "&resumable=false"),
    ],
)
async def test_plain_streams_end_with_their_connection(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, headers: dict[str, str], url: str
) -> None:
    """A client that is not an EventSource, such as curl, has no grace period."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with client.stream("GET", url, headers=headers) as response:
        await take(events(response), 3)
    # Less than the grace period of five seconds.
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled", 3.0)


async def test_resumable_true_makes_a_stream_resumable(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Any client can send resumable=true, also by POST."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.005)
    body = {"query": "AI", "streaming": True, "resumable": True}
    async with client.stream("POST", "/api/v1/search", json=body) as response:
        first = await take(events(response), 4)
    headers = {"last-event-id": first[-1].id or ""}
    async with client.stream("POST", "/api/v1/search", json=body, headers=headers) as response:
        rest = [event async for event in events(response)]
    assert text_of(first + rest) == "".join(DELTAS)
    assert len(orchestrator.requests) == 1


async def test_a_stream_can_be_stopped(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """DELETE ends a stream immediately; its reader gets an error event."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with reading(client) as stream:
        name = (await take(stream, 3))[-1].id.rpartition(".")[0]  # type: ignore[union-attr]
        stopped = await client.delete(f"/api/v1/search/{name}")
        rest = [event async for event in stream]
    assert stopped.status_code == 204
    assert rest[-1].name == "error"
    assert rest[-1].data["error"]["code"] == "cancelled"
    assert rest[-1].id == f"{name}.error"
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled", 3.0)
    again = await client.delete(f"/api/v1/search/{name}")
    assert again.status_code == 404
    assert len(gateway.dependencies.resumable_streams) == 0


async def test_a_new_connection_replaces_the_previous_one(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Resuming ends the previous connection, which may be dead without a TCP reset."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.02)
    async with reading(client) as old:
        first = await take(old, 4)
        async with reading(client, last=first[-1].id or "") as new:
            rest = [event async for event in new]
        cut = [event async for event in old]
    assert text_of(first + rest) == "".join(DELTAS)
    assert "complete" not in [event.name for event in cut]
    assert len(orchestrator.requests) == 1


@pytest.mark.parametrize("last", ["7", "results", "nobody.3", "x.99999999999999", "x.y", ".", "é"])
async def test_an_unknown_event_id_is_410(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, last: str
) -> None:
    """Ids of plain streams, unknown streams and malformed ids are a 410; no search starts."""
    headers = [(b"last-event-id", last.encode()), (b"accept", b"text/event-stream")]
    response = await client.get(SEARCH, headers=headers)
    assert response.status_code == 410
    assert orchestrator.requests == []


async def test_a_stream_belongs_to_the_key_that_started_it(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """A request with another key can neither resume nor stop it."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.01)
    mine, other = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}
    async with start_gateway(api_keys="one,two") as server, client_of(server) as client:
        async with reading(client, **mine) as stream:
            first = await take(stream, 2)
        last = first[-1].id or ""
        refused = await client.get(SEARCH, headers={**other, "last-event-id": last})
        stop = await client.delete(f"/api/v1/search/{last.rpartition('.')[0]}", headers=other)
        assert (refused.status_code, stop.status_code) == (410, 404)
        async with reading(client, last=last, **mine) as stream:
            rest = [event async for event in stream]
    assert text_of(first + rest) == "".join(DELTAS)


async def test_an_error_before_the_first_event_keeps_no_stream(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """The response has the status of the error, and there is no stream to resume."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full", retry_after=2))
    response = await client.get(SEARCH, headers=EVENT_SOURCE)
    assert response.status_code == 429
    assert len(gateway.dependencies.resumable_streams) == 0


async def test_a_disconnect_before_the_first_event_cancels(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """Without an event id the client cannot resume, so there is no grace period."""
    orchestrator.script = Script(seconds_before_first_event=30)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(SEARCH, headers=EVENT_SOURCE, timeout=0.3)
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled", 3.0)
    assert len(gateway.dependencies.resumable_streams) == 0


async def test_a_mid_stream_error_is_replayed(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A client that resumes receives the error as the last event."""
    orchestrator.script = Script(
        deltas=DELTAS[:3], failure=MeshError(ErrorKind.UNAVAILABLE, "no replica is left")
    )
    async with reading(client) as stream:
        first = await take(stream, 2)
    async with reading(client, last=first[-1].id or "") as stream:
        rest = [event async for event in stream]
    assert text_of(first + rest) == "".join(DELTAS[:3])
    assert rest[-1].data["error"]["message"] == "no replica is left"


async def test_shutdown_ends_streams_without_a_client(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """A stream in its grace period does not delay shutdown; its call is cancelled."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with start_gateway(resume_seconds=60) as server:
        async with client_of(server) as client, reading(client) as stream:
            await take(stream, 3)
        await eventually(lambda: server.dependencies.drain.num_active == 0, "the request ends")
        assert orchestrator.num_running == 1
    await eventually(lambda: orchestrator.num_running == 0, "the call ends")
