"""A client that comes back goes on where it was; everybody else's stream ends with them."""

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
"""What every browser's EventSource sends."""

DELTAS = [f"{number} " for number in range(40)]


@asynccontextmanager
async def reading(
    client: httpx.AsyncClient, *, last: str = "", url: str = SEARCH, **headers: str
) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of one connection, which is dropped at the end of the block."""
    sent = {**EVENT_SOURCE, **headers, **({"last-event-id": last} if last else {})}
    async with client.stream("GET", url, headers=sent) as response:
        assert response.status_code == 200, await response.aread()
        yield events(response)


async def take(stream: AsyncIterator[Event], number: int) -> list[Event]:
    """The next events."""
    return [await anext(stream) for _ in range(number)]


def text_of(received: list[Event]) -> str:
    """What the tokens spell."""
    return "".join(event.data["token"] for event in received if event.name == "token")


async def test_every_event_has_an_id(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A plain stream's are the places; a resumable one's name the stream as well."""
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


async def test_a_client_that_comes_back_misses_nothing(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Dropped again and again in mid-stream, no token is lost or doubled, and one call made it."""
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


async def test_what_was_lost_on_the_way_is_sent_again(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A client may be further behind than the server knows, after the end as well."""
    orchestrator.script = Script(deltas=DELTAS)
    async with reading(client) as stream:
        whole = [event async for event in stream]
    for place in (0, 5, 40):
        async with reading(client, last=whole[place].id or "") as stream:
            again = [event async for event in stream]
        assert [event.text for event in again] == [event.text for event in whole[place + 1 :]]
    assert len(orchestrator.requests) == 1


async def test_generation_goes_on_while_the_client_is_away(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Within the grace the answer is finished, and waits."""
    orchestrator.script = Script(deltas=DELTAS, seconds_before_delta=0.005)
    async with reading(client) as stream:
        first = await take(stream, 3)
    await eventually(lambda: orchestrator.num_running == 0, "the generation ends")
    assert orchestrator.num_cancelled == 0
    async with reading(client, last=first[-1].id or "") as stream:
        rest = [event async for event in stream]
    assert text_of(first + rest) == "".join(DELTAS)


async def test_the_end_makes_an_event_source_stop(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """It reconnects after every end; no content, and no second generation, is the answer."""
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


async def test_a_stream_without_its_client_is_ended_after_the_grace(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Not before, and then at once; who comes later is told so, and starts nothing."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with start_gateway(resume_seconds=1) as server, client_of(server) as client:
        async with reading(client) as stream:
            first = await take(stream, 5)
        left = time.monotonic()
        await asyncio.sleep(0.2)
        assert orchestrator.num_cancelled == 0
        await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
        assert time.monotonic() - left > 0.9
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
async def test_others_streams_end_with_their_connection(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, headers: dict[str, str], url: str
) -> None:
    """What curl sends asks for no grace: its slot is free at once."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with client.stream("GET", url, headers=headers) as response:
        await take(events(response), 3)
    # Far less than the grace of five seconds.
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled", 3.0)


async def test_any_client_may_ask_for_it(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """By POST as well."""
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
    """Whoever does not want to wait for the grace says so, reading or gone."""
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


async def test_the_latest_connection_has_the_stream(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A connection that is dead, and not known to be, gives way to the one that comes after."""
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
async def test_what_cannot_be_resumed_starts_nothing(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, last: str
) -> None:
    """An id of a plain stream, of none, or no id at all: gone."""
    headers = [(b"last-event-id", last.encode()), (b"accept", b"text/event-stream")]
    response = await client.get(SEARCH, headers=headers)
    assert response.status_code == 410
    assert orchestrator.requests == []


async def test_a_stream_belongs_to_the_key_that_began_it(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Another key's holder can neither read nor stop it."""
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


async def test_a_refusal_keeps_its_status_and_leaves_nothing(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """Before the first event there is nothing to come back to."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full", retry_after=2))
    response = await client.get(SEARCH, headers=EVENT_SOURCE)
    assert response.status_code == 429
    assert len(gateway.dependencies.resumable_streams) == 0


async def test_leaving_before_the_first_event_ends_the_work(
    client: httpx.AsyncClient, gateway: GatewayServer, orchestrator: FakeOrchestrator
) -> None:
    """Whoever has no event has no id to come back with."""
    orchestrator.script = Script(seconds_before_first_event=30)
    with pytest.raises(httpx.ReadTimeout):
        await client.get(SEARCH, headers=EVENT_SOURCE, timeout=0.3)
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled", 3.0)
    assert len(gateway.dependencies.resumable_streams) == 0


async def test_an_error_in_mid_stream_reaches_who_comes_back(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Once, as the last event."""
    orchestrator.script = Script(
        deltas=DELTAS[:3], failure=MeshError(ErrorKind.UNAVAILABLE, "no replica is left")
    )
    async with reading(client) as stream:
        first = await take(stream, 2)
    async with reading(client, last=first[-1].id or "") as stream:
        rest = [event async for event in stream]
    assert text_of(first + rest) == "".join(DELTAS[:3])
    assert rest[-1].data["error"]["message"] == "no replica is left"


async def test_stopping_the_process_ends_what_nobody_reads(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """A stream in its grace does not hold up the end; nothing is left of it."""
    orchestrator.script = Script(deltas="ab", endless=True, seconds_before_delta=0.01)
    async with start_gateway(resume_seconds=60) as server:
        async with client_of(server) as client, reading(client) as stream:
            await take(stream, 3)
        await eventually(lambda: server.dependencies.drain.num_active == 0, "the request ends")
        assert orchestrator.num_running == 1
    await eventually(lambda: orchestrator.num_running == 0, "the call ends")
