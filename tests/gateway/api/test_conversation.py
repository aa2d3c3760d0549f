"""Searches with earlier questions: stages, related questions, and resumption between them."""

from __future__ import annotations

import json

import httpx
import pytest

from mesh.errors import ErrorKind, MeshError
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.sse import events

HISTORY = [{"query": "What is a weir?", "summary": "A low dam. [1]"}]
ASKED = {"query": "why?", "history": HISTORY, "related": 2}
STREAM = {**ASKED, "streaming": True, "resumable": True}


async def test_the_stages_and_the_related_questions_are_events_of_their_own(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """They have no ids; the events that every client knows keep their order."""
    orchestrator.script = Script(deltas=["a", "b"])
    async with client.stream("POST", "/api/v1/search", json=STREAM) as response:
        received = [event async for event in events(response)]
    assert [event.name for event in received] == [
        "status", "status", "search_results", "status", "token", "token", "complete", "related",
    ]  # fmt: skip
    assert [event.data.get("status") for event in received if event.name == "status"] == [
        "rewriting", "searching", "reading",
    ]  # fmt: skip
    assert received[2].data["searches"] == ["why?"]
    assert received[-1].data == {"type": "related", "questions": ["What is a dam?"]}
    [request] = orchestrator.requests
    turns = [(turn.query, turn.summary) for turn in request.history]  # type: ignore[attr-defined]
    assert turns == [("What is a weir?", "A low dam. [1]")]
    assert request.num_related == 2  # type: ignore[attr-defined]


async def test_a_search_without_them_has_the_events_of_old(client: httpx.AsyncClient) -> None:
    """No client gets events that it has not asked for."""
    async with client.stream(
        "POST", "/api/v1/search", json={"query": "AI", "streaming": True}
    ) as r:
        names = {event.name async for event in events(r)}
    assert names == {"search_results", "token", "complete"}


@pytest.mark.parametrize("number", [3, 4, 5, 6])
async def test_a_conversation_resumes_where_it_was_lost(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, number: int
) -> None:
    """The stages are counted, so no event is lost or doubled."""
    orchestrator.script = Script(deltas=list("abcdef"), seconds_before_delta=0.01)
    received = []
    async with client.stream("POST", "/api/v1/search", json=STREAM) as response:
        async for event in events(response):
            received.append(event)
            if len(received) == number:
                break
    last = next(event.id for event in reversed(received) if event.id)
    async with client.stream(
        "POST", "/api/v1/search", json=STREAM, headers={"last-event-id": last}
    ) as response:
        rest = [event async for event in events(response)]
    texts = [event.data["token"] for event in [*received, *rest] if event.name == "token"]
    assert texts == list("abcdef")
    assert [event.name for event in rest][-2:] == ["complete", "related"]
    assert len(orchestrator.requests) == 1


async def test_get_and_post_send_the_same_conversation(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """An array in a query string is JSON text; the response has the related questions."""
    headers = {"x-request-id": "r-1"}
    params = {**ASKED, "history": json.dumps(HISTORY)}
    got = await client.get("/api/v1/search", params=params, headers=headers)
    posted = await client.post("/api/v1/search", json=ASKED, headers=headers)
    first, second = orchestrator.requests
    assert first == second
    for response in (got, posted):
        answer = response.json()
        assert answer["related"] == ["What is a dam?"]
        assert answer["searches"] == ["why?"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"history": "["}, "history must be a JSON array, given"),
        ({"history": "{}"}, "history must be an array"),
        ({"history": json.dumps([{"query": ""}])}, r"history[0].query must have at least 1"),
        ({"history": json.dumps([{"query": "a"}] * 21)}, "history must have at most 20 items"),
        ({"history": json.dumps([{"query": "a", "summary": "b" * 20_001}])}, "history[0].summary"),
        ({"max_searches": 6}, "max_searches must be at most 5, given"),
        ({"related": 4}, "related must be at most 3, given"),
        ({"grounded": "free"}, "grounded must be"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx.AsyncClient, fields: dict[str, str | int], message: str
) -> None:
    """With the limit and the given value."""
    response = await client.get("/api/v1/search", params={"query": "a", **fields})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_an_array_in_a_body_is_no_text(client: httpx.AsyncClient) -> None:
    """JSON text is for query strings only."""
    response = await client.post("/api/v1/search", json={"query": "a", "history": "[]"})
    assert response.status_code == 400


async def test_the_documents_suggest_questions(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """For a page before the first search."""
    response = await client.get("/api/v1/examples")
    assert response.json() == {"questions": ["What is a weir?", "Dams"]}
    orchestrator.script = Script(refusal=MeshError(ErrorKind.UNAVAILABLE, "draining"))
    assert (await client.get("/api/v1/examples")).status_code == 503
