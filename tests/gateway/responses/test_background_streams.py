"""Streams of responses in the background: read at any gateway, from any event on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.responses import kept
from gateway.responses.background import event_log, event_reader
from mesh.errors import ErrorKind, MeshError
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.responses.events import Event, joined, parse_events, parse_part, plain
from tests.helpers import eventually

TEXT = "response.output_text.delta"
BODY = {"input": "Hi", "background": True, "stream": True}


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(event_reader, "POLL_SECONDS", 0.02)


async def whole(client: httpx.AsyncClient, **body: object) -> list[Event]:
    """All events of a response in the background."""
    response = await client.post("/v1/responses", json={**BODY, **body})
    assert response.status_code == 200, response.text
    return parse_events(response.text)


async def after(client: httpx.AsyncClient, id: str, number: int | None = None) -> list[Event]:
    """The events of a response after event `number`."""
    params = {"stream": "true", **({} if number is None else {"starting_after": number})}
    response = await client.get(f"/v1/responses/{id}", params=params)
    assert response.status_code == 200, response.text
    return parse_part(response.text)


async def lines_of(response: httpx.Response) -> AsyncIterator[Event]:
    """The events of a stream while it is read."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def first_events(client: httpx.AsyncClient, last: str) -> list[Event]:
    """Start a response, read up to the first event of a kind, and disconnect."""
    events: list[Event] = []
    async with client.stream("POST", "/v1/responses", json=BODY) as response:
        async for event in lines_of(response):
            events.append(event)
            if event["type"] == last:
                return events
    raise AssertionError(f"no {last} in {events}")


def release(orchestrator: FakeOrchestrator, number: int = 10) -> None:
    """Let the next deltas of all generations pass."""
    assert orchestrator.script.gate is not None
    for _ in range(number):
        orchestrator.script.gate.release()


async def test_a_stream_has_the_events_of_one_in_the_foreground(client: httpx.AsyncClient) -> None:
    """Beside `queued`; the stored response is that of the last event, and can be continued."""
    events = await whole(client)
    response = events[-1]["response"]
    assert joined(events, TEXT) == "Hello world"
    assert (await client.get(f"/v1/responses/{response['id']}")).json() == response
    foreground = await client.post("/v1/responses", json={"input": "Hi", "stream": True})
    kinds = [event["type"] for event in parse_events(foreground.text)]
    assert [e["type"] for e in events if e["type"] != "response.queued"] == kinds
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "queued"
    body = {"input": "Go on", "previous_response_id": response["id"]}
    assert (await client.post("/v1/responses", json=body)).status_code == 200


async def test_every_rest_of_a_stream_can_be_read(client: httpx.AsyncClient) -> None:
    """After any event, as often as wanted; after the last one there is none."""
    events = await whole(client)
    id = events[0]["response"]["id"]
    assert await after(client, id) == events
    for number in range(len(events) + 2):
        assert await after(client, id, number) == events[number + 1 :]


async def test_a_client_that_disconnects_resumes(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The generation goes on without it; two clients read the rest while it arises."""
    orchestrator.script = Script(gate=asyncio.Semaphore(1))
    begun = await first_events(client, TEXT)
    id, last = begun[0]["response"]["id"], begun[-1]["sequence_number"]
    assert orchestrator.num_cancelled == 0
    path = f"/v1/responses/{id}?stream=true&starting_after={last}"
    async with client.stream("GET", path) as first, client.stream("GET", path) as second:
        release(orchestrator)
        rest = [event async for event in lines_of(first)]
        assert [event async for event in lines_of(second)] == rest
    assert joined([*begun, *rest], TEXT) == "Hello world"
    assert [event["sequence_number"] for event in rest] == list(
        range(last + 1, len(rest) + last + 1)
    )
    assert rest[-1]["type"] == "response.completed"


async def test_the_sdk_resumes_a_stream(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """By the number of the last event that it has; it lists the input items in pages."""
    orchestrator.script = Script(deltas=[f"word{number} " for number in range(30)])
    given: Any = [{"role": "user", "content": str(number)} for number in range(25)]
    texts = []
    async with await official.responses.create(
        input=given, model="fake", background=True, stream=True
    ) as begun:
        async for event in begun:
            if event.type == "response.created":
                id = event.response.id
            if event.type == "response.output_text.delta":
                texts.append(event.delta)
                break
    last = event.sequence_number
    rest = await official.responses.retrieve(id, stream=True, starting_after=last)
    texts += [event.delta async for event in rest if event.type == "response.output_text.delta"]
    assert "".join(texts) == (await official.responses.retrieve(id)).output_text
    assert len(texts) == 30
    listed = [item async for item in official.responses.input_items.list(id, order="asc")]
    assert [item.content[0].text for item in listed] == [m["content"] for m in given]  # type: ignore[union-attr]


async def test_another_gateway_streams_the_rest(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """While the response is generated, through the store that they share."""
    store = f"sqlite:{tmp_path / 'x.db'}"
    orchestrator.script = Script(gate=asyncio.Semaphore(1))
    async with (
        start_gateway(response_store=store) as one,
        start_gateway(response_store=store) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        begun = await first_events(first, TEXT)
        id = begun[0]["response"]["id"]
        async with second.stream("GET", f"/v1/responses/{id}?stream=true") as response:
            seen = lines_of(response)
            repeated = [await anext(seen) for _ in begun]
            assert repeated == begun
            release(orchestrator)
            rest = [event async for event in seen]
        assert await after(first, id) == [*begun, *rest]
    assert rest[-1]["type"] == "response.completed"


@pytest.mark.parametrize("deletes", [False, True])
async def test_a_cancelled_stream_ends(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, deletes: bool
) -> None:
    """With an event that says so; readers of a deleted response get an error."""
    orchestrator.script = Script(gate=asyncio.Semaphore(1))
    begun = await first_events(client, TEXT)
    id = begun[0]["response"]["id"]
    path = f"/v1/responses/{id}"
    async with client.stream("GET", f"{path}?stream=true") as response:
        seen = lines_of(response)
        assert [await anext(seen) for _ in begun] == begun
        if deletes:
            await client.delete(path)
        else:
            await client.post(f"{path}/cancel")
        [end] = [event async for event in seen]
    await eventually(lambda: orchestrator.num_cancelled == 1, "the generation is cancelled")
    assert end["sequence_number"] == len(begun)
    if deletes:
        assert (end["type"], end["code"]) == ("error", "cancelled")
        assert (await client.get(f"{path}?stream=true")).status_code == 404
    else:
        assert (end["type"], end["response"]["status"]) == ("response.cancelled", "cancelled")


async def test_a_refusal_in_the_background_is_an_event(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The status has been sent before."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "no place"))
    events = await whole(client)
    assert [event["type"] for event in events][1:] == ["response.queued", "response.failed"]
    error = {"code": "rate_limit_exceeded", "message": "no place"}
    assert events[-1]["response"]["error"] == error
    assert await after(client, events[0]["response"]["id"]) == events


async def test_a_stopped_gateway_ends_the_stream(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """Another gateway has all its events, with the failure as the last one."""
    store = f"sqlite:{tmp_path / 'x.db'}"
    orchestrator.script = Script(gate=asyncio.Semaphore(1))
    async with start_gateway(response_store=store) as one, client_of(one) as first:
        begun = await first_events(first, TEXT)
    async with start_gateway(response_store=store) as two, client_of(two) as second:
        events = await after(second, begun[0]["response"]["id"])
    assert events[: len(begun)] == begun
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["message"] == "the server stopped"


@pytest.mark.parametrize("body", [{"background": True}, {"background": False, "stream": True}])
async def test_only_streams_in_the_background_can_be_read_again(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    """Others have no stored events."""
    response = await client.post("/v1/responses", json={"input": "Hi", **body})
    answer = parse_events(response.text)[-1]["response"] if body.get("stream") else response.json()
    refused = await client.get(f"/v1/responses/{answer['id']}?stream=true")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "stream")
    assert "background and stream" in error["message"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stream=maybe", "stream"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("stream=true&starting_after=x", "starting_after"),
        ("starting_after=1", "stream"),
    ],
)
async def test_a_bad_query_is_refused(client: httpx.AsyncClient, query: str, field: str) -> None:
    """The field is named."""
    id = (await whole(client))[0]["response"]["id"]
    response = await client.get(f"/v1/responses/{id}?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


async def test_another_keys_stream_is_unknown(start_gateway: StartGateway) -> None:
    """While it runs and afterwards."""
    async with start_gateway(api_keys="one, two") as gateway, client_of(gateway) as client:
        client.headers["authorization"] = "Bearer one"
        id = (await whole(client))[0]["response"]["id"]
        client.headers["authorization"] = "Bearer two"
        response = await client.get(f"/v1/responses/{id}?stream=true")
        assert response.status_code == 404


async def test_a_long_stream_is_read_from_the_store(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory only its newest events stay; the parts fit together."""
    monkeypatch.setattr(event_log, "MAX_BYTES", 2000)
    monkeypatch.setattr(event_log, "CHUNK_BYTES", 1000)
    orchestrator.script = Script(deltas=[f"word{number} " for number in range(300)])
    events = await whole(client)
    assert joined(events, TEXT) == "".join(f"word{number} " for number in range(300))
    assert await after(client, events[0]["response"]["id"]) == events
    answer = await client.post("/v1/responses", json={**BODY, "stream": False})
    assert answer.json()["status"] == "queued"
    assert plain(events[-1]["response"])["output"][0]["status"] == "completed"
