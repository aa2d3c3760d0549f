"""Stored responses: continued by id, read, deleted, in the background, cancelled, bounded."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api import responses
from gateway.conversations.store import StoredResponse
from gateway.http.server import GatewayServer
from gateway.responses import kept, response
from gateway.responses.items import Json
from gateway.validation.body import LARGE_BODY_BYTES
from mesh.errors import ErrorKind, MeshError
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.responses.events import events_of, parse_events
from tests.helpers import eventually

UNKNOWN = "resp_" + "0" * 48


async def created(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The response to a request that succeeds."""
    response = await client.post("/v1/responses", json={"input": "Hi", **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def read(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
    """A stored response."""
    response = await client.get(f"/v1/responses/{id}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def roles_and_texts(orchestrator: FakeOrchestrator) -> list[tuple[str, str]]:
    """The messages of the last request."""
    messages = orchestrator.requests[-1].chat.messages  # type: ignore[attr-defined]
    return [(message.role, message.content) for message in messages]


async def test_a_conversation_continues_by_id(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Over three turns, streamed and not; instructions are not kept, as at OpenAI."""
    first = await created(client, input="One", instructions="Be short.")
    second = (await events_of(client, input="Two", previous_response_id=first["id"]))[-1]
    id = second["response"]["id"]
    third = await created(client, input=[{"role": "user", "content": "3"}], previous_response_id=id)
    assert roles_and_texts(orchestrator) == [
        ("user", "One"),
        ("assistant", "Hello world"),
        ("user", "Two"),
        ("assistant", "Hello world"),
        ("user", "3"),
    ]
    assert third["previous_response_id"] == id
    assert await read(client, third["id"]) == third
    assert await read(client, id) == second["response"]


async def test_what_is_stored_is_encoded_once(
    gateway: GatewayServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has the text of the last event, and the items of earlier turns as they were."""
    encoded: list[str] = []
    encode = response.encode_line

    def counting(value: object) -> str:
        encoded.append(encode(value))
        return encoded[-1]

    monkeypatch.setattr(response, "encode_line", counting)
    store = gateway.dependencies.responses._store
    items, id = b"[", None
    for _ in range(3):
        encoded.clear()
        body = {"input": "Grüße\u2028", "previous_response_id": id, "stream": True}
        async with client.stream("POST", "/v1/responses", json=body) as answer:
            text = (await answer.aread()).decode()
        id = parse_events(text)[-1]["response"]["id"]
        stored = await store.get("", id)
        assert stored is not None
        assert f'"response":{stored.response.decode()},' in text.split("event: ")[-1]
        assert len(encoded) == 3, "what was asked for, the begin and the end"
        assert stored.items.startswith(items)
        items = stored.items[:-1]
    assert len(kept.items_of(stored)) == 6


async def test_calls_and_their_outputs_continue(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The client sends the result of a call alone."""
    from tests.gateway.responses.test_events import MIXED

    orchestrator.script = Script(deltas=MIXED)
    first = await created(client, tools=[{"type": "function", "name": "find"}])
    output = {"type": "function_call_output", "output": "x"}
    outputs = [{**output, "call_id": id} for id in ("call_1", "call_2")]
    await created(client, input=outputs, previous_response_id=first["id"])
    messages = orchestrator.requests[-1].chat.messages  # type: ignore[attr-defined]
    assert [m.role for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1].reasoning_content == "Let me think."
    assert messages[1].content == "I look é\u2028"
    assert messages[1].tool_calls_json.count("call_") == 2


async def test_unknown_ids_are_404(client: httpx.AsyncClient) -> None:
    """In OpenAI's form; `store: false` keeps nothing."""
    unstored = await created(client, store=False)
    assert unstored["store"] is False
    for id in (UNKNOWN, unstored["id"], "x", "resp_\u00e9"):
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel")):
            response = await client.request(method, f"/v1/responses/{id}{path}")
            assert response.status_code == 404
            assert response.json()["error"]["type"] == "invalid_request_error"
        body = {"input": "Hi", "previous_response_id": id}
        response = await client.post("/v1/responses", json=body)
        error = response.json()["error"]
        assert response.status_code == 404
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"


async def test_another_keys_response_is_unknown(start_gateway: StartGateway) -> None:
    """To read, continue, cancel and delete."""
    async with start_gateway(api_keys="one, two") as gateway, client_of(gateway) as client:
        client.headers["authorization"] = "Bearer one"
        id = (await created(client))["id"]
        client.headers["authorization"] = "Bearer two"
        body = {"input": "Hi", "previous_response_id": id}
        for refused in (
            await client.get(f"/v1/responses/{id}"),
            await client.delete(f"/v1/responses/{id}"),
            await client.post(f"/v1/responses/{id}/cancel"),
            await client.post("/v1/responses", json=body),
        ):
            assert refused.status_code == 404
        client.headers["authorization"] = "Bearer one"
        assert (await read(client, id))["id"] == id


async def test_a_deleted_response_is_gone(client: httpx.AsyncClient) -> None:
    """The later ones keep their conversation."""
    first = await created(client)
    second = await created(client, previous_response_id=first["id"])
    deleted = await client.delete(f"/v1/responses/{first['id']}")
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    assert (await client.get(f"/v1/responses/{first['id']}")).status_code == 404
    await created(client, previous_response_id=second["id"])


async def test_a_long_conversation_is_refused(start_gateway: StartGateway) -> None:
    """It is bounded as a body is, so it cannot grow turn by turn."""
    async with start_gateway(max_body_bytes=2000) as gateway, client_of(gateway) as client:
        id = (await created(client, input="x" * 1500))["id"]
        id = (await created(client, input="x" * 1500, previous_response_id=id))["id"]
        body = {"input": "Hi", "previous_response_id": id}
        response = await client.post("/v1/responses", json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "previous_response_id")
        assert "at most 2000 bytes" in error["message"]


async def test_a_long_conversation_is_parsed_in_a_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size counts as that of a body does: the event loop serves other requests meanwhile."""
    threads: list[threading.Thread] = []

    def items_of(stored: StoredResponse) -> list[Json]:
        threads.append(threading.current_thread())
        return kept.items_of(stored)

    monkeypatch.setattr(responses, "items_of", items_of)
    short = (await created(client))["id"]
    long = (await created(client, input="x" * 2 * LARGE_BODY_BYTES))["id"]
    for id in (short, long):
        await created(client, previous_response_id=id)
    assert [each is threading.main_thread() for each in threads] == [True, False]


async def test_a_response_that_cannot_be_stored_says_so(start_gateway: StartGateway) -> None:
    """It is returned all the same; reading another one is 503."""
    store = "sqlite:/missing/folder/x.db"
    async with start_gateway(response_store=store) as gateway, client_of(gateway) as client:
        assert (await created(client))["store"] is False
        assert (await events_of(client, input="Hi"))[-1]["response"]["store"] is False
        response = await client.get(f"/v1/responses/{UNKNOWN}")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_a_response_in_the_background(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Queued at once, then in progress, then complete; it can be continued only then."""
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    queued = await created(client, background=True)
    assert (queued["status"], queued["output"]) == ("queued", [])
    id = queued["id"]
    assert (await read(client, id))["status"] == "in_progress"
    body = {"input": "Hi", "previous_response_id": id}
    early = await client.post("/v1/responses", json=body)
    assert (early.status_code, early.json()["error"]["param"]) == (400, "previous_response_id")
    assert orchestrator.script.gate is not None
    for _ in range(3):
        orchestrator.script.gate.release()
    done = await until(client, id, "completed")
    assert done["output"][0]["content"][0]["text"] == "Hello world"
    assert done["usage"]["output_tokens"] == 3
    # A complete response stays as it is.
    assert (await client.post(f"/v1/responses/{id}/cancel")).json() == done


async def until(client: httpx.AsyncClient, id: str, status: str) -> dict[str, Any]:
    """Wait for a status of a stored response."""
    async with asyncio.timeout(10):
        while (response := await read(client, id))["status"] != status:
            await asyncio.sleep(0.01)
    return response


@pytest.mark.parametrize("deletes", [False, True])
async def test_cancelling_ends_the_generation(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, deletes: bool
) -> None:
    """So does deleting; cancelling again returns the same."""
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    id = (await created(client, background=True))["id"]
    await eventually(lambda: orchestrator.num_running == 1, "the generation runs")
    if deletes:
        await client.delete(f"/v1/responses/{id}")
    else:
        cancelled = (await client.post(f"/v1/responses/{id}/cancel")).json()
        assert cancelled["status"] == "cancelled"
        assert (await client.post(f"/v1/responses/{id}/cancel")).json() == cancelled
        assert await read(client, id) == cancelled
    await eventually(lambda: orchestrator.num_cancelled == 1, "the generation is cancelled")


async def test_a_foreground_response_cannot_be_cancelled(client: httpx.AsyncClient) -> None:
    """As at OpenAI."""
    id = (await created(client))["id"]
    response = await client.post(f"/v1/responses/{id}/cancel")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "not_cancellable")


async def test_a_failure_in_the_background_is_stored(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Also a refusal, whose request has been answered before."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "no place"))
    id = (await created(client, background=True))["id"]
    failed = await until(client, id, "failed")
    assert failed["error"] == {"code": "rate_limit_exceeded", "message": "no place"}


async def test_another_gateway_reads_and_cancels(
    start_gateway: StartGateway,
    orchestrator: FakeOrchestrator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gateways share a store; a run notices the cancellation when it renews its lease."""
    monkeypatch.setattr(kept, "RENEW_SECONDS", 0.02)
    store = f"sqlite:{tmp_path / 'x.db'}"
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    async with (
        start_gateway(response_store=store) as one,
        start_gateway(response_store=store) as two,
        client_of(one) as first,
        client_of(two) as second,
    ):
        id = (await created(first, background=True))["id"]
        await eventually(lambda: orchestrator.num_running == 1, "the generation runs")
        assert (await read(second, id))["status"] == "in_progress"
        await second.post(f"/v1/responses/{id}/cancel")
        await eventually(lambda: orchestrator.num_cancelled == 1, "the generation is cancelled")
        assert (await read(first, id))["status"] == "cancelled"


async def test_a_stopped_gateway_leaves_a_failed_response(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, tmp_path: Path
) -> None:
    """The drain ends the run; another gateway reads why."""
    store = f"sqlite:{tmp_path / 'x.db'}"
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    async with start_gateway(response_store=store) as one, client_of(one) as first:
        id = (await created(first, background=True))["id"]
        await eventually(lambda: orchestrator.num_running == 1, "the generation runs")
    async with start_gateway(response_store=store) as two, client_of(two) as second:
        failed = await read(second, id)
    assert failed["status"] == "failed"
    assert failed["error"]["message"] == "the server stopped"


async def test_responses_in_the_background_are_bounded(
    client: httpx.AsyncClient,
    gateway: GatewayServer,
    orchestrator: FakeOrchestrator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For each key; the next one is 429."""
    monkeypatch.setattr(kept, "MAX_RUNS_PER_KEY", 2)
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    for _ in range(2):
        await created(client, background=True)
    refused = await client.post("/v1/responses", json={"input": "Hi", "background": True})
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    await gateway.dependencies.responses.close()


async def test_the_bound_counts_responses_that_are_being_stored(
    start_gateway: StartGateway,
    orchestrator: FakeOrchestrator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Requests that arrive together do not pass it while a database writes."""
    monkeypatch.setattr(kept, "MAX_RUNS_PER_KEY", 2)
    orchestrator.script = Script(gate=asyncio.Semaphore(0))
    store = f"sqlite:{tmp_path / 'responses.db'}"
    async with start_gateway(response_store=store) as gateway, client_of(gateway) as client:
        body = {"input": "Hi", "background": True}
        together = [client.post("/v1/responses", json=body) for _ in range(6)]
        statuses = [each.status_code for each in await asyncio.gather(*together)]
        assert sorted(statuses) == [200] * 2 + [429] * 4
        await gateway.dependencies.responses.close()
