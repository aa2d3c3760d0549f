"""OpenSearch and SearXNG, by servers that speak what their documentation says."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.searxng import SearxngRetriever
from orchestrator.search.summary import NOTHING_SEARCHED
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.search.retrievers.documents import DOCUMENTS
from tests.orchestrator.search.retrievers.engine import Asked, Engine, engine


def opensearch(asked: Asked) -> object:
    """Documents that have a word of the query, with the bodies of OpenSearch's `_search`."""
    query = asked.body["query"]["bool"]
    words = query["must"][0]["multi_match"]["query"].lower().split()
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
    found = {"total": total, "max_score": 3.0, "hits": hits[: asked.body["size"]]}
    return {"took": 3, "timed_out": False, "_shards": {"total": 1, "failed": 0}, "hits": found}


def searxng(asked: Asked) -> object:
    """The same in SearXNG's words."""
    results = [
        {"title": title, "url": url, "content": text, "engine": "e", "engines": ["e"], "score": 1.5}
        for title, url, text, unsafe in DOCUMENTS
        if not (unsafe and asked.params["safesearch"] == "2")
    ]
    return {"query": asked.params["q"], "number_of_results": 0, "results": results}


PROVIDERS = [("opensearch", opensearch), ("searxng", searxng)]


def settings(kind: str, running: Engine) -> dict[str, Any]:
    """What an orchestrator is told to search there."""
    return {"retrieval": kind, f"{kind}_url": running.url}


async def test_opensearch_is_asked_as_it_documents() -> None:
    """Its query language, its path, basic authentication; its scores are kept."""
    async with engine(opensearch) as running:
        url = running.url.replace("http://", "http://user:p%40ss@")
        retriever = OpenSearchRetriever(url, "my-docs", 5.0)
        found = await retriever.search("fox lynx", 10, True)
        await retriever.close()
    [asked] = running.asked
    assert (asked.method, asked.path) == ("POST", "/my-docs/_search")
    assert asked.headers["authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert asked.headers["content-type"] == "application/json"
    assert asked.body["size"] == 10
    assert asked.body["query"]["bool"]["must_not"] == [{"term": {"unsafe": True}}]
    assert "Hunting" not in {result.title for result in found}
    lynx = next(result for result in found if result.title == "Long")
    assert "lynx" in lynx.text


async def test_searxng_is_asked_as_it_documents() -> None:
    """JSON, and how safe; without scores the order is the ranking."""
    async with engine(searxng) as running:
        retriever = SearxngRetriever(running.url + "/", 5.0)
        safe = await retriever.search("fox", 10, True)
        await retriever.search("fox", 10, False)
        running.answer = lambda asked: {
            "results": [
                {"title": title, "url": url, "content": "A fox."} for title, url, *_ in DOCUMENTS
            ]
        }
        unscored = await retriever.search("fox", 10, False)
        await retriever.close()
    assert running.asked[0].path == "/search"
    assert running.asked[0].params == {"q": "fox", "format": "json", "safesearch": "2"}
    assert running.asked[1].params["safesearch"] == "0"
    assert "Hunting" not in {result.title for result in safe}
    assert [result.title for result in unscored] == [title for title, *_ in DOCUMENTS]


@pytest.mark.parametrize(("kind", "answer"), PROVIDERS)
async def test_what_is_found_is_summarised(kind: str, answer: Any) -> None:
    """With the setting, end to end through the orchestrator."""
    async with (
        engine(answer) as running,
        orchestrator(FakeInference(), **settings(kind, running)) as mesh,
    ):
        asked = orchestrator_pb2.SummarizeRequest(query="fox", num_results=2, safe_search=True)
        whole = await call_unary(mesh.stub.Summarize, asked)
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


@pytest.mark.parametrize(("status", "answer"), BROKEN)
@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_an_engine_that_fails_is_told(kind: str, status: int, answer: object) -> None:
    """Nothing could be searched: the answer says so, and no model is asked."""
    async with (
        engine(lambda asked: answer, status=status) as running,
        orchestrator(
            FakeInference(), retrieval_timeout_seconds=20, **settings(kind, running)
        ) as mesh,
    ):
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, asked)
    assert whole.summary == NOTHING_SEARCHED
    assert len(whole.results.results) == 0
    assert mesh.engine.requests == []


@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_a_slow_engine_costs_the_limit_and_no_more(kind: str) -> None:
    """And its connection is given up."""
    async with (
        engine(lambda asked: {}, delay=120) as running,
        orchestrator(
            FakeInference(), retrieval_timeout_seconds=0.5, **settings(kind, running)
        ) as mesh,
    ):
        begun = time.monotonic()
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, asked)
        assert time.monotonic() - begun < 10
        assert len(running.asked) == 1
    assert whole.summary == NOTHING_SEARCHED


@pytest.mark.parametrize("kind", ["opensearch", "searxng"])
async def test_an_engine_that_is_not_there_is_told(kind: str) -> None:
    """The service starts without it."""
    there = {"retrieval": kind, f"{kind}_url": "http://127.0.0.1:1"}
    async with orchestrator(FakeInference(), **there) as mesh:
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(mesh.stub.Summarize, asked)
    assert whole.summary == NOTHING_SEARCHED


@pytest.mark.parametrize("value", [None, 7, [], {}])
async def test_fields_of_another_kind_are_taken_for_none(value: object) -> None:
    """A document that has no text gives no passage, and breaks nothing."""
    source = {"title": value, "url": value, "text": value}
    good = {"title": "T", "url": "u", "text": "A fox."}
    hits = [{"_score": value, "_source": source}, {"_source": good}, value]
    async with engine(lambda asked: {"hits": {"hits": hits}}) as running:
        retriever = OpenSearchRetriever(running.url, "x", 5.0)
        found = await retriever.search("fox", 10, False)
        await retriever.close()
    assert [result.title for result in found] == ["T"]
