"""OpenSearch and SearXNG, against fake servers that follow their documentation."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.searxng import SearxngRetriever
from orchestrator.search.summary import RETRIEVAL_FAILED
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.search.retrievers.documents import DOCUMENTS
from tests.orchestrator.search.retrievers.fake_engine import (
    FakeEngine,
    RecordedRequest,
    fake_engine,
)


def opensearch(request: RecordedRequest) -> object:
    """OpenSearch's `_search` response: the documents that contain a word of the query."""
    query = request.body["query"]["bool"]
    [exact, similar] = query["must"][0]["bool"]["should"]
    assert similar["multi_match"]["fuzziness"] == "AUTO:5,9"
    words = exact["multi_match"]["query"].lower().split()
    without_unsafe = {"term": {"unsafe": True}} in query["must_not"]
    hits = [
        {
            "_index": "documents",
            "_id": str(number),
            "_score": 3.0 / number,
            "_source": {"title": title, "url": url, "text": text},
        }
        for number, (title, url, text, unsafe) in enumerate(DOCUMENTS, 1)
        if any(word in text.lower() for word in words) and not (unsafe and without_unsafe)
    ]
    total = {"value": len(hits), "relation": "eq"}
    found = {"total": total, "max_score": 3.0, "hits": hits[: request.body["size"]]}
    return {"took": 3, "timed_out": False, "_shards": {"total": 1, "failed": 0}, "hits": found}


def searxng(request: RecordedRequest) -> object:
    """SearXNG's JSON response with the same documents."""
    results = [
        {"title": title, "url": url, "content": text, "engine": "e", "engines": ["e"], "score": 1.5}
        for title, url, text, unsafe in DOCUMENTS
        if not (unsafe and request.params["safesearch"] == "2")
    ]
    return {"query": request.params["q"], "number_of_results": 0, "results": results}


PROVIDERS = [("opensearch", opensearch), ("searxng", searxng)]


def settings(kind: str, running: FakeEngine) -> dict[str, Any]:
    """The orchestrator's settings that select this search engine."""
    return {"retrieval": kind, f"{kind}_url": running.url}


async def test_opensearch_request_follows_its_documentation() -> None:
    """Query DSL, path and basic authentication; a long document yields its matching passage."""
    async with fake_engine(opensearch) as running:
        url = running.url.replace("http://", "http://user:p%40ss@")
        retriever = OpenSearchRetriever(url, "my-docs", 5.0)
        found = await retriever.search("fox lynx", 10, True)
        await retriever.close()
    [request] = running.requests
    assert (request.method, request.path) == ("POST", "/my-docs/_search")
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert request.headers["content-type"] == "application/json"
    assert request.body["size"] == 10
    assert request.body["query"]["bool"]["must_not"] == [{"term": {"unsafe": True}}]
    assert "Hunting" not in {result.title for result in found}
    lynx = next(result for result in found if result.title == "Long")
    assert "lynx" in lynx.text


async def test_searxng_request_follows_its_documentation() -> None:
    """Format and safe search; results without scores keep their order."""
    async with fake_engine(searxng) as running:
        retriever = SearxngRetriever(running.url + "/", 5.0)
        safe = await retriever.search("fox", 10, True)
        await retriever.search("fox", 10, False)
        running.respond = lambda request: {
            "results": [
                {"title": title, "url": url, "content": "A fox."} for title, url, *_ in DOCUMENTS
            ]
        }
        unscored = await retriever.search("fox", 10, False)
        await retriever.close()
    assert running.requests[0].path == "/search"
    assert running.requests[0].params == {"q": "fox", "format": "json", "safesearch": "2"}
    assert running.requests[1].params["safesearch"] == "0"
    assert "Hunting" not in {result.title for result in safe}
    assert [result.title for result in unscored] == [title for title, *_ in DOCUMENTS]


@pytest.mark.parametrize(("kind", "respond"), PROVIDERS)
async def test_search_engine_results_are_summarised(kind: str, respond: Any) -> None:
    """The setting selects the retriever; the search runs through the whole orchestrator."""
    async with (
        fake_engine(respond) as running,
        orchestrator(FakeInference(), **settings(kind, running)) as mesh,
    ):
        request = orchestrator_pb2.SummarizeRequest(query="fox", num_results=2, safe_search=True)
        whole = await call_unary(mesh.stub.Summarize, request)
    assert [source.title for source in whole.results.results] == ["Foxes", "Dogs"]
    assert "A fox is a small wild dog. [1]" in mesh.tokenizer.prompts[-1]


BROKEN: list[tuple[int, object]] = [
    (500, {}),
    (429, {"results": []}),
    (200, b"<html>"),
    (200, b"[1]"),
    (200, {}),
    (200, {"hits": {"hits": 7}, "results": 7}),
    (200, b"x" * (9 * 1024 * 1024)),
]


@pytest.mark.parametrize(("status", "response"), BROKEN)
@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_an_invalid_response_is_reported_in_the_summary(
    kind: str, status: int, response: object
) -> None:
    """The summary says that the search failed, and the model is not run."""
    async with (
        fake_engine(lambda request: response, status=status) as running,
        orchestrator(
            FakeInference(), retrieval_timeout_seconds=20, **settings(kind, running)
        ) as mesh,
    ):
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, request)
    assert whole.summary == RETRIEVAL_FAILED
    assert len(whole.results.results) == 0
    assert mesh.engine.requests == []


@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_a_slow_search_engine_times_out(kind: str) -> None:
    """The request takes about the timeout; the engine gets one request only."""
    async with (
        fake_engine(lambda request: {}, delay=120) as running,
        orchestrator(
            FakeInference(), retrieval_timeout_seconds=0.5, **settings(kind, running)
        ) as mesh,
    ):
        begun = time.monotonic()
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, request)
        assert time.monotonic() - begun < 10
        assert len(running.requests) == 1
    assert whole.summary == RETRIEVAL_FAILED


@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_an_unreachable_search_engine_is_reported_in_the_summary(kind: str) -> None:
    """The service starts without it; the summary says that the search failed."""
    unreachable = {"retrieval": kind, f"{kind}_url": "http://127.0.0.1:1"}
    async with orchestrator(FakeInference(), **unreachable) as mesh:
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, request)
    assert whole.summary == RETRIEVAL_FAILED


@pytest.mark.parametrize("value", [None, 7, [], {}])
async def test_fields_of_another_type_count_as_missing(value: object) -> None:
    """A document without text yields no passage and raises no error."""
    source = {"title": value, "url": value, "text": value}
    good = {"title": "T", "url": "u", "text": "A fox."}
    hits = [{"_score": value, "_source": source}, {"_source": good}, value]
    async with fake_engine(lambda request: {"hits": {"hits": hits}}) as running:
        retriever = OpenSearchRetriever(running.url, "x", 5.0)
        found = await retriever.search("fox", 10, False)
        await retriever.close()
    assert [result.title for result in found] == ["T"]
