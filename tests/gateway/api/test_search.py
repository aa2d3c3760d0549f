"""`/api/v1/search`: bytes, timing and errors of its streams, and its JSON response."""

from __future__ import annotations

import asyncio
import re
import time

import httpx
import pytest

from mesh.errors import ErrorKind, MeshError
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import ABORT, FakeOrchestrator, Script
from tests.gateway.sse import events

STREAM = {"query": "AI", "streaming": "true"}

EXPECTED = """\
event: search_results
data: {"type":"search_results","query":"AI","results":[{"position":1,"title":"Weir",\
"url":"https://example.org/weir","snippet":"A low dam that regulates a river.","score":1.5}]}
id: results

event: token
id: 0
data: {"type":"token","token":"Hello","position":0}

event: token
id: 1
data: {"type":"token","token":" \\"wör\\nld\\"","position":1}

event: complete
data: {"type":"complete","finish_reason":"stop","citations":[1],"citation_details":[\
{"n":1,"span":[2,9],"supported":true,"attributed":false,"sentence":[0,5]},\
{"n":null,"span":null,"supported":false,"attributed":false,"sentence":[6,11]}],"nothing_found":false,\
"usage":{"prompt_tokens":7,\
"completion_tokens":2,"cached_tokens":4},"request_id":"r-1","trace_id":"TRACE",\
"trace_sampled":false}
id: complete

"""


async def test_the_bytes_of_a_search_stream(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The whole stream is as documented."""
    results = Script().results[:1]
    orchestrator.script = Script(deltas=("Hello", ' "wör\nld"'), results=results)
    response = await client.get("/api/v1/search", params=STREAM, headers={"x-request-id": "r-1"})
    trace_id = response.headers["x-trace-id"]
    assert response.status_code == 200
    assert response.text == EXPECTED.replace("TRACE", trace_id)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert re.fullmatch("[0-9a-f]{32}", trace_id)


async def test_accept_header_requests_a_stream(client: httpx.AsyncClient) -> None:
    """An EventSource sends the Accept header, which enables streaming."""
    headers = {"accept": "text/event-stream"}
    response = await client.get("/api/v1/search", params={"query": "AI"}, headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_json_response_without_streaming(client: httpx.AsyncClient) -> None:
    """Without streaming, GET and POST return one JSON object."""
    got = await client.get("/api/v1/search", params={"query": " AI "})
    posted = await client.post("/api/v1/search", json={"query": "AI"})
    for response in (got, posted):
        answer = response.json()
        assert answer.pop("request_id") == response.headers["x-request-id"]
        assert answer.pop("trace_id") == response.headers["x-trace-id"]
        assert [result["position"] for result in answer.pop("search_results")] == [1, 2]
        assert answer == {
            "query": "AI",
            "status": "completed",
            "summary": "Hello world",
            "citations": [1],
            "citation_details": [
                {
                    "n": 1,
                    "span": [2, 9],
                    "supported": True,
                    "attributed": False,
                    "sentence": [0, 5],
                },
                {
                    "n": None,
                    "span": None,
                    "supported": False,
                    "attributed": False,
                    "sentence": [6, 11],
                },
            ],
            "nothing_found": False,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 4},
            "trace_sampled": False,
        }


async def test_fields_reach_the_orchestrator(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """GET and POST send the same request; absent fields have the documented defaults."""
    fields = {"query": "AI", "num_results": 3, "max_tokens": 9, "safe_search": True, "model": "m"}
    headers = {"x-request-id": "r-1"}
    await client.get("/api/v1/search", params=fields, headers=headers)
    await client.post("/api/v1/search", json=fields, headers=headers)
    await client.get("/api/v1/search", params={"query": "AI"})
    first, second, third = orchestrator.requests
    assert first == second
    assert first.api_request.response_id == "r-1"  # type: ignore[attr-defined]
    assert not first.api_request.stream  # type: ignore[attr-defined]
    assert (first.num_results, first.max_tokens, first.safe_search) == (3, 9, True)  # type: ignore[attr-defined]
    assert (third.num_results, third.max_tokens, third.safe_search) == (5, 256, False)  # type: ignore[attr-defined]


async def test_tokens_arrive_one_by_one(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Results arrive before the first token; each token before the next is generated."""
    gate = asyncio.Semaphore(0)
    orchestrator.script = Script(deltas="abcde", gate=gate)
    names = []
    async with client.stream("GET", "/api/v1/search", params=STREAM) as response:
        async for event in events(response):
            names.append(event.name)
            gate.release()
    assert names == ["search_results", *["token"] * 5, "complete"]


async def test_a_late_first_event_is_preceded_by_comments(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """While an engine starts, proxies see a living stream; a refusal is then its last event."""
    full = MeshError(ErrorKind.UNAVAILABLE, "no engine is ready", retry_after=9)
    async with start_gateway(keep_alive_seconds=0.02) as server, client_of(server) as client:
        for refusal in (None, full):
            orchestrator.script = Script(seconds_before_first_event=0.3, refusal=refusal)
            async with client.stream("GET", "/api/v1/search", params=STREAM) as response:
                assert response.status_code == 200
                text = (await response.aread()).decode()
            assert text.startswith(": keep-alive\n\n")
            assert ("event: search_results" in text) is (refusal is None)
            assert ('"message":"no engine is ready"' in text) is (refusal is full)


async def test_an_idle_stream_gets_keep_alive_comments(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """Comments keep an idle stream open, before the first token and between tokens."""
    orchestrator.script = Script(deltas="ab", seconds_before_delta=0.35)
    async with start_gateway(keep_alive_seconds=0.1) as server, client_of(server) as client:
        response = await client.get("/api/v1/search", params=STREAM)
    frames = response.text.split("\n\n")
    kinds = [frame.partition("\n")[0] for frame in frames[:-1]]
    kinds = kinds[kinds.index("event: search_results") :]
    first, second = kinds.index("event: token"), len(kinds) - 2
    assert set(kinds[1:first]) == set(kinds[first + 1 : second]) == {": keep-alive"}
    assert first - 1 >= 2
    assert kinds[-2:] == ["event: token", "event: complete"]


async def test_a_busy_stream_has_no_comments(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """No keep-alive comment is sent while tokens arrive in time."""
    orchestrator.script = Script(deltas="ab" * 10, seconds_before_delta=0.02)
    async with start_gateway(keep_alive_seconds=3) as server, client_of(server) as client:
        response = await client.get("/api/v1/search", params=STREAM)
    assert "keep-alive" not in response.text


REFUSALS = [
    (ErrorKind.INVALID_REQUEST, 400, None),
    (ErrorKind.CONTEXT_TOO_LONG, 400, None),
    (ErrorKind.MODEL_NOT_FOUND, 404, None),
    (ErrorKind.OVERLOADED, 429, "3"),
    (ErrorKind.UNAVAILABLE, 503, "3"),
    (ErrorKind.DEADLINE, 504, None),
    (ErrorKind.INTERNAL, 500, None),
]


@pytest.mark.parametrize("streaming", ["true", "false"])
@pytest.mark.parametrize(("kind", "status", "retry_after"), REFUSALS)
async def test_an_error_before_the_first_event_has_its_status(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    streaming: str,
    kind: ErrorKind,
    status: int,
    retry_after: str | None,
) -> None:
    """The response is JSON with the status of the error, also for a stream."""
    delay = 2.5 if retry_after else None
    orchestrator.script = Script(refusal=MeshError(kind, "no", param="query", retry_after=delay))
    response = await client.get("/api/v1/search", params={"query": "AI", "streaming": streaming})
    error = response.json()["error"]
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers.get("retry-after") == retry_after
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] == "no"
    assert error["param"] == "query"


async def test_a_mid_stream_error_is_the_last_event(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """After the first byte an error is an event, and the stream ends."""
    orchestrator.script = Script(failure=MeshError(ErrorKind.UNAVAILABLE, "no replica is left"))
    response = await client.get("/api/v1/search", params=STREAM)
    assert response.status_code == 200
    assert response.text.endswith(
        'event: error\ndata: {"type":"error","error":{"message":"no replica is left",'
        '"type":"server_error","code":"unavailable"}}\nid: error\n\n'
    )
    assert response.text.count("event: token") == 3
    assert "complete" not in response.text


async def test_an_upstream_bug_is_reported_without_details(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """An unexpected exception upstream is an internal_error without its message."""
    orchestrator.script = Script(failure=RuntimeError("a secret"))
    response = await client.get("/api/v1/search", params=STREAM)
    assert '"code":"internal_error"' in response.text
    assert "secret" not in response.text


async def test_a_stream_without_a_finish_is_an_error(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """If the upstream call ends without a finish event, the response is an error."""
    orchestrator.script = Script(without_finish=True)
    streamed = await client.get("/api/v1/search", params=STREAM)
    whole = await client.get("/api/v1/search", params={"query": "AI"})
    assert "event: error" in streamed.text
    assert whole.status_code == 500


async def test_an_aborted_search_has_finish_reason_abort(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A cancellation by an operator is a finish reason, not an error."""
    orchestrator.script = Script(reason=ABORT)
    response = await client.get("/api/v1/search", params=STREAM)
    assert '"finish_reason":"abort"' in response.text


async def test_any_character_survives_the_stream(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Every character arrives, and no client can mistake one for a line end."""
    texts = ("日本", "🙂", "\u2028x\u2029", "\x85", "a\r\nb\tc", '"\\', "</script>", "\x00\x0b\x1c")
    orchestrator.script = Script(deltas=texts)
    async with client.stream("GET", "/api/v1/search", params=STREAM) as response:
        stream = [event async for event in events(response)]
    assert tuple(event.data["token"] for event in stream[1:-1]) == texts
    assert all(len(event.text.splitlines()) == 1 for event in stream)


async def test_the_deadline_ends_a_stream(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """An exceeded deadline is a 504 before the first byte, and an error event after it."""
    async with start_gateway(request_timeout_seconds=1) as server, client_of(server) as client:
        orchestrator.script = Script(seconds_before_first_event=30)
        before = await client.get("/api/v1/search", params=STREAM)
        orchestrator.script = Script(seconds_before_delta=0.2, endless=True)
        after = await client.get("/api/v1/search", params=STREAM)
    assert before.status_code == 504
    assert before.json()["error"]["message"] == "the request exceeded its deadline"
    assert after.status_code == 200
    assert '"code":"deadline_exceeded"' in after.text
    assert max(context.remaining() for context in orchestrator.contexts) < 0.1


async def test_concurrent_streams_do_not_wait_for_each_other(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Eight streams together take less time than eight in sequence."""
    orchestrator.script = Script(deltas="abcde", seconds_before_delta=0.05)
    started = time.monotonic()
    responses = await asyncio.gather(
        *(client.get("/api/v1/search", params=STREAM) for _ in range(8))
    )
    assert time.monotonic() - started < 8 * 5 * 0.05
    assert all(response.text.count("event: token") == 5 for response in responses)
