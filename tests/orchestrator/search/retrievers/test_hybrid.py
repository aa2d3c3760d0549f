"""The search by words and by vectors together, and what remains if the encoder fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.rpc.channel import call_unary
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.index.build import main
from orchestrator.index.embedding import embed_passages
from orchestrator.index.vectors import EmbeddingModel
from orchestrator.index.writer import IndexWriter
from orchestrator.search.embedders import Embedder
from orchestrator.search.rerankers import HttpReranker
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers import sqlite_index
from orchestrator.search.retrievers.hybrid import HybridRetriever, K, fuse
from orchestrator.search.retrievers.opensearch import OpenSearchRetriever
from orchestrator.search.retrievers.reranking import RerankingRetriever
from orchestrator.search.retrievers.sqlite_index import IndexRetriever
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.search.retrievers.encoder import FakeEncoder, encoder_server, vector
from tests.orchestrator.search.retrievers.fake_engine import RecordedRequest, fake_engine

TEXTS = {
    "garage": "An automobile needs fuel and oil.",
    "kennel": "The hound sleeps outside at night.",
    "harbour": "A vessel enters the harbour at night.",
    "clinic": "The physician sees patients at night.",
    "secret": "A canine guards the vault at night.",
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with vectors; one document is unsafe."""
    folder = tmp_path_factory.mktemp("hybrid")
    (folder / "docs").mkdir()
    for name, text in TEXTS.items():
        unsafe = "unsafe: true\n" if name == "secret" else ""
        (folder / "docs" / f"{name}.md").write_text(f"---\n{unsafe}title: T\n---\n{text}\n")
    assert main([str(folder / "docs"), "--out", str(folder / "index")]) == 0
    with closing(IndexWriter(folder / "index")) as writer:
        assert asyncio.run(embed_passages(writer.vectors, FakeEncoder(), 2)) == len(TEXTS)
    return folder / "index"


class BadStore:
    """A search backend whose search by words fails."""

    name = "bad"

    async def embedding_model(self) -> EmbeddingModel | None:
        return None

    async def search(self, *args: object) -> list[SearchResult]:
        raise ConnectionError("no database")

    async def search_vectors(self, *args: object) -> list[SearchResult]:
        return []

    async def close(self) -> None:
        return None


async def test_the_failure_of_the_store_is_raised_itself() -> None:
    """The log of a failed search names the cause, not a group of exceptions."""
    retriever = HybridRetriever(BadStore(), FakeEncoder(), 1.0)
    with pytest.raises(ConnectionError, match="no database"):
        await retriever.search("canine", 3, False)


class BadEncoder(FakeEncoder):
    """Fails, or never answers, or returns vectors of another length."""

    def __init__(self, fault: str) -> None:
        super().__init__("another" if fault == "model" else "concepts")
        self._fault = fault

    async def embed(self, texts: Any) -> Any:
        if self._fault == "late":
            await asyncio.Event().wait()
        if self._fault == "fails":
            raise ConnectionError("connection refused")
        return [[1.0, 2.0] for _ in texts]


async def urls(index: Path, query: str, encoder: Embedder, safe_search: bool = False) -> list[str]:
    """The documents that the search by words and vectors finds, best first."""
    retriever = HybridRetriever(IndexRetriever(index), encoder, 0.2)
    found = await retriever.search(query, 10, safe_search)
    await retriever.close()
    return [result.url.removesuffix(".md") for result in found]


@pytest.fixture(params=["exact", "by signs"])
def exactness(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of search by vectors; the one by signs is for large indexes."""
    if request.param == "by signs":
        monkeypatch.setattr(sqlite_index, "MAX_EXACT_PASSAGES", 0)


@pytest.mark.usefixtures("exactness")
async def test_a_synonym_is_found_and_words_decide_among_equals(index: Path) -> None:
    """The words of the query occur in no text about dogs."""
    assert (await urls(index, "car", FakeEncoder()))[0] == "garage"
    assert set((await urls(index, "dog", FakeEncoder()))[:2]) == {"kennel", "secret"}
    assert (await urls(index, "dog outside", FakeEncoder()))[0] == "kennel"


@pytest.mark.usefixtures("exactness")
async def test_unsafe_documents_are_left_out_of_vectors_too(index: Path) -> None:
    """With `safe_search`."""
    found = await urls(index, "dog", FakeEncoder(), safe_search=True)
    assert found[0] == "kennel"
    assert "secret" not in found


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("late", "took longer than 0.2 s"),
        ("fails", "connection refused"),
        ("dimensions", "12 dimensions, not 2"),
        ("model", "embedded with concepts, not with another"),
    ],
)
async def test_without_the_encoder_words_are_searched(
    index: Path, fault: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The results are those of the search by words; the log says why, once."""
    retriever = HybridRetriever(IndexRetriever(index), BadEncoder(fault), 0.2)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = await retriever.search("night", 10, False)
            assert len(found) == 4
    await retriever.close()
    [record] = caplog.records
    assert record.message == "searching by words only"
    assert problem in record.problem  # type: ignore[attr-defined]


class HalfStore(BadStore):
    """A search backend whose search by words fails or never ends, while that by vectors works."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def embedding_model(self) -> EmbeddingModel | None:
        return EmbeddingModel("", 0)

    async def search(self, *args: object) -> list[SearchResult]:
        if self._error is None:
            await asyncio.Event().wait()
        raise self._error  # type: ignore[misc]

    async def search_vectors(self, *args: object) -> list[SearchResult]:
        return [SearchResult("Dog", "d", 0.8, "A dog."), SearchResult("Cat", "c", 0.3, "A cat.")]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("error", "problem"),
    [(None, "took longer than 0.05 s"), (ConnectionError("no database"), "no database")],
)
async def test_without_words_vectors_are_searched(
    error: Exception | None, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A search by words that fails or is late does not lose what was found by vectors."""
    retriever = HybridRetriever(HalfStore(error), FakeEncoder(), 30.0, "", 0.05)
    found = await retriever.search("canine", 1, False)
    await retriever.close()
    assert [(each.url, each.similarity) for each in found] == [("d", 0.8)]
    [record] = caplog.records
    assert record.message == "searching by vectors only"
    assert record.problem == problem  # type: ignore[attr-defined]


async def test_an_index_without_vectors_is_searched_by_words(tmp_path: Path) -> None:
    """As before it is embedded."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("A fox runs.\n")
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "index")]) == 0
    assert await urls(tmp_path / "index", "fox", FakeEncoder()) == ["a"]


def test_ranks_are_fused_reciprocally() -> None:
    """A result of both searches gets the sum, and comes before the first of either."""
    one, two, three = (SearchResult("t", str(n), 1.0, f"text {n}") for n in range(3))
    fused = fuse([one, two], [three, two])
    assert [result.url for result in fused] == ["1", "0", "2"]
    assert fused[0].score == pytest.approx(2 / (K + 2))
    assert fused[1].score == pytest.approx(1 / (K + 1))


async def test_the_settings_select_the_encoder(index: Path, spans: InMemorySpanExporter) -> None:
    """A search through the whole orchestrator, with an OpenAI-compatible server."""
    async with (
        encoder_server() as server,
        orchestrator(
            FakeInference(),
            index=str(index),
            embedding_url=server.url,
            embedding_model="concepts",
            embedding_timeout_seconds=30,
            embedding_query_prefix="query: ",
        ) as running,
    ):
        request = orchestrator_pb2.SummarizeRequest(query="boat")
        whole = await call_unary(running.stub.Summarize, request)
    assert whole.results.results[0].url == "harbour.md"
    assert server.requests[0].body["input"] == ["query: boat"]
    [span] = [span for span in spans.get_finished_spans() if span.name == "retrieval"]
    assert dict(span.attributes or {})["weir.retrieval.mode"] == "fused"


@pytest.mark.parametrize("kind", ["MODEL_KIND_EMBEDDING", "MODEL_KIND_GENERATION"])
async def test_an_engine_embeds_the_query(tmp_path: Path, kind: str) -> None:
    """Without a URL the encoder is a model of the engines, which may be one that only embeds."""
    engine = FakeInference()
    engine.name, engine.kind = "encoder", common_pb2.ModelKind.Value(kind)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("A fox runs.\n")
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "index")]) == 0
    encoder = FakeEncoder("encoder")
    encoder.embed = lambda texts: asyncio.sleep(0, [[3.0, 6.0]] * len(texts))  # type: ignore[method-assign]
    with closing(IndexWriter(tmp_path / "index")) as writer:
        await embed_passages(writer.vectors, encoder, 8)
    async with orchestrator(
        FakeInference(),
        engine,
        index=str(tmp_path / "index"),
        embedding_model="encoder",
        embedding_timeout_seconds=30,
    ) as running:
        request = orchestrator_pb2.SummarizeRequest(query="something else", model="fake")
        whole = await call_unary(running.stub.Summarize, request)
    assert [result.url for result in whole.results.results] == ["a.md"]
    assert len(engine.embedded) == 1


async def test_opensearch_searches_vectors_as_its_documentation_says() -> None:
    """The k-NN query has its filter inside; words are searched in the same index."""
    source = {"title": "T", "url": "u", "text": "A vessel enters the harbour."}

    def respond(request: RecordedRequest) -> object:
        return {"hits": {"hits": [{"_score": 0.9, "_source": source}]}}

    async with fake_engine(respond) as running:
        store = OpenSearchRetriever(running.url, "docs", 5.0, "embedding")
        retriever = HybridRetriever(store, FakeEncoder(), 5.0)
        found = await retriever.search("boat", 10, True)
        await retriever.close()
    assert [result.text for result in found] == ["A vessel enters the harbour."]
    [nearest] = [
        request.body["query"]["bool"]["must"][0]["knn"]
        for request in running.requests
        if "knn" in request.body["query"]["bool"]["must"][0]
    ]
    assert nearest == {
        "embedding": {
            "vector": vector("boat"),
            "k": 100,
            "filter": {"bool": {"must_not": [{"term": {"unsafe": True}}]}},
        }
    }


def rerank(request: RecordedRequest) -> object:
    """Prefers documents with the word harbour; scores may be negative."""
    scored = [
        {"index": index, "relevance_score": -1.0 if "harbour" in text else -9.0}
        for index, text in enumerate(request.body["documents"])
    ]
    return {"results": sorted(scored, key=lambda each: -each["relevance_score"])}


@pytest.mark.parametrize("response", [rerank, lambda request: {"results": [{"index": 7}]}])
async def test_the_best_results_are_reranked(index: Path, response: Any) -> None:
    """By the server's scores; in the order of the first search if its response is invalid."""
    async with fake_engine(response) as server:
        reranker = HttpReranker(server.url, "cross", "", 5.0)
        retriever = RerankingRetriever(IndexRetriever(index), reranker, 5.0)
        before = await retriever._inner.search("hound night", 10, False)
        found = await retriever.search("hound night", 10, False)
        await retriever.close()
    expected = "harbour.md" if response is rerank else "kennel.md"
    assert (before[0].url, found[0].url) == ("kennel.md", expected)
    assert [result.score for result in found] == [result.score for result in before]
    assert {result.url for result in found} == {result.url for result in before}
    [request] = server.requests
    assert request.path == "/rerank"
    assert request.body["query"] == "hound night"


async def test_an_engine_reranks(index: Path) -> None:
    """Without a URL the reranker is a model of the engines; the fake prefers short documents."""
    cross = FakeInference()
    cross.name, cross.kind = "cross", common_pb2.MODEL_KIND_SCORE
    request = orchestrator_pb2.SummarizeRequest(query="night", num_results=4, model="fake")
    orders = []
    for settings in ({}, {"rerank_model": "cross", "rerank_timeout_seconds": 30}):
        fields: Any = {"index": str(index), **settings}
        async with orchestrator(FakeInference(), cross, **fields) as running:
            whole = await call_unary(running.stub.Summarize, request)
        orders.append([result.url for result in whole.results.results])
    assert len(cross.scored) == 1
    assert orders[1][0] == "kennel.md"
    assert orders[1] != orders[0]
    assert sorted(orders[1]) == sorted(orders[0])
