"""Searches through all four processes, as in the quickstart."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.support.sse import Event, events

QUERIES = ("AI", "kubernetes", "what is backpressure", "gRPC", "tracing", "attention", "TLS", "DNS")


async def search(client: httpx.AsyncClient, query: str) -> list[Event]:
    """All events of a streamed search."""
    params = {"query": query, "streaming": "true"}
    async with client.stream("GET", "/api/v1/search", params=params) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-trace-id"])
        return [event async for event in events(response)]


def text_of(stream: list[Event]) -> str:
    """The concatenated tokens of a stream."""
    return "".join(event.data["token"] for event in stream if event.name == "token")


async def test_a_search_streams_results_tokens_and_complete(client: httpx.AsyncClient) -> None:
    """The stream has the documented events in the documented order."""
    stream = await search(client, "AI")
    names = [event.name for event in stream]
    assert names[0] == "search_results"
    assert names[-1] == "complete"
    assert set(names[1:-1]) == {"token"}
    assert [event.data["position"] for event in stream[1:-1]] == list(range(len(stream) - 2))
    results = stream[0].data["results"]
    assert [result["position"] for result in results] == list(range(1, len(results) + 1))
    assert all(result["title"] and result["url"] and result["snippet"] for result in results)
    end = stream[-1].data
    assert end["finish_reason"] == "stop"
    assert end["usage"]["prompt_tokens"] > 100
    assert end["usage"]["completion_tokens"] >= len(stream) - 2
    assert end["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", end["trace_id"])
    assert end["citations"] == sorted({int(n) for n in re.findall(r"\[(\d+)\]", text_of(stream))})


async def test_the_summary_quotes_the_documents(client: httpx.AsyncClient) -> None:
    """The text is whole sentences, each with the number of a search result."""
    stream = await search(client, "AI")
    sentences = re.findall(r"(.+?[.!?]) \[(\d+)\](?: |$)", text_of(stream))
    assert len(sentences) >= 1
    assert "".join(f"{s} [{n}]" for s, n in sentences) == text_of(stream).replace("] ", "]")
    assert all(1 <= int(number) <= len(stream[0].data["results"]) for _, number in sentences)
    assert all(sentence[0].isupper() for sentence, _ in sentences)


async def test_sentences_are_grounded_in_the_passages(client: httpx.AsyncClient) -> None:
    """Spans refer to the results' snippets; a quoted sentence is supported."""
    num_supported = 0
    for query in ("gRPC deadlines", "attention", "what is backpressure"):
        stream = await search(client, query)
        snippets = {result["position"]: result["snippet"] for result in stream[0].data["results"]}
        details = stream[-1].data["citation_details"]
        assert details
        for each in details:
            begin, end = each["sentence"]
            sentence = text_of(stream)[begin:end]
            quoted = sentence in snippets.get(each["n"], "")
            if each["supported"]:
                num_supported += 1
                begin, end = each["span"]
                span = snippets[each["n"]][begin:end]
                assert span == sentence if quoted else span
            assert each["supported"] or not quoted
        assert {each["n"] for each in details} - {None} == set(stream[-1].data["citations"])
    assert num_supported > 0


async def test_tokens_arrive_as_they_are_generated(client: httpx.AsyncClient) -> None:
    """The tokens arrive over time, not all at the end."""
    stream = await search(client, "what is backpressure")
    tokens = [event for event in stream if event.name == "token"]
    arrivals = {round(event.at, 3) for event in tokens}
    # Quoted text is accepted several tokens at a time (speculative decoding).
    assert len(tokens) >= 3
    assert len(arrivals) >= len(tokens) / 3
    assert tokens[0].at < tokens[len(tokens) // 2].at < tokens[-1].at


async def test_eight_searches_stream_concurrently(client: httpx.AsyncClient) -> None:
    """Most of eight streams have their first token before the last stream ends."""
    streams = await asyncio.gather(*(search(client, query) for query in QUERIES))
    first_tokens = [next(e.at for e in stream if e.name == "token") for stream in streams]
    ends = [stream[-1].at for stream in streams]
    assert all(stream[-1].name == "complete" for stream in streams)
    assert sorted(first_tokens)[len(streams) // 2] < max(ends)
    alone = [text_of(await search(client, query)) for query in QUERIES[:2]]
    assert [text_of(stream) for stream in streams[:2]] == alone


async def test_json_has_the_same_content_as_the_stream(client: httpx.AsyncClient) -> None:
    """Without streaming, the same answer is one JSON object."""
    stream = await search(client, "kubernetes")
    answer = (await client.get("/api/v1/search", params={"query": "kubernetes"})).json()
    assert answer["status"] == "completed"
    assert answer["summary"] == text_of(stream)
    assert answer["search_results"] == stream[0].data["results"]
    assert answer["citations"] == stream[-1].data["citations"]


async def test_a_search_without_results(client: httpx.AsyncClient) -> None:
    """The summary says that nothing was found, without citations."""
    answer = (await client.get("/api/v1/search", params={"query": "zzzqqq xylophonist"})).json()
    assert answer["search_results"] == []
    assert answer["summary"] == "Nothing was found about this in the sources."
    assert answer["citations"] == []


async def test_closing_the_connection_frees_the_sequence(
    client: httpx.AsyncClient, inference: inference_pb2_grpc.InferenceServiceAsyncStub
) -> None:
    """A client that disconnects in mid-stream leaves no sequence and no KV block in the engine."""
    body = {"model": "demo", "prompt": "Once", "max_tokens": 1500, "stream": True}
    request = {"json": {**body, "ignore_eos": True}}
    async with client.stream("POST", "/v1/completions", **request) as response:  # type: ignore[arg-type]
        stream = events(response)
        for _ in range(5):  # after some tokens the sequence is in the running batch
            await anext(stream)
        assert (await load(inference)).num_requests_running == 1
    async with asyncio.timeout(10):
        while (state := await load(inference)).num_requests_running:
            await asyncio.sleep(0.01)
    assert state.num_requests_waiting == 0
    assert state.kv_cache_usage == 0


async def load(
    inference: inference_pb2_grpc.InferenceServiceAsyncStub,
) -> inference_pb2.GetLoadResponse:
    """The engine's load, by GetLoad."""
    return await inference.GetLoad(inference_pb2.GetLoadRequest())


BAD_SEARCHES: list[tuple[dict[str, Any], str]] = [
    ({}, "query"),
    ({"query": ""}, "query"),
    ({"query": "   "}, "query"),
    ({"query": "a" * 501}, "501"),
    ({"query": "AI", "num_results": "0"}, "num_results"),
    ({"query": "AI", "num_results": "21"}, "21"),
    ({"query": "AI", "max_tokens": "-1"}, "max_tokens"),
    ({"query": "AI", "streaming": "maybe"}, "streaming"),
]


@pytest.mark.parametrize(("params", "named"), BAD_SEARCHES)
async def test_an_invalid_search_is_refused(
    client: httpx.AsyncClient, params: dict[str, Any], named: str
) -> None:
    """The response is 400 and names the field or the value; the service stays ready."""
    response = await client.get("/api/v1/search", params=params)
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]
    assert (await client.get("/readyz")).status_code == 200


BAD_CHATS: list[tuple[bytes, int, str]] = [
    (b'{"model": "demo", "messages": [', 400, "JSON"),
    (
        b'{"model": "absent", "messages": [{"role": "user", "content": "Hi"}]}',
        404,
        "absent",
    ),
    (b'{"model": "demo", "messages": []}', 400, "messages"),
    (b'{"model": "demo", "messages": "Hi"}', 400, "messages"),
    (
        b'{"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": -1}',
        400,
        "max_tokens",
    ),
    (
        b'{"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "temperature": "x"}',
        400,
        "temperature",
    ),
    (
        b'{"model": "demo", "messages": [{"role": "user", "content": "%s"}]}' % (b"word " * 9000),
        400,
        "context",
    ),
]


@pytest.mark.parametrize(("body", "status", "named"), BAD_CHATS)
async def test_an_invalid_chat_is_refused(
    client: httpx.AsyncClient, body: bytes, status: int, named: str
) -> None:
    """The response is 4xx and its message names the cause; the service stays ready."""
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == status
    assert named in response.json()["error"]["message"]
    assert (await client.get("/readyz")).status_code == 200
