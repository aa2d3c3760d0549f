"""Search and summary over gRPC, with a fake tokenizer and a fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.index.build import main as build_index
from orchestrator.search.prompt import NOTHING_FOUND
from orchestrator.search.summary import RETRIEVAL_FAILED
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator


@pytest.fixture
def index(tmp_path: Path) -> str:
    """Path of an index of two documents."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "foxes.md").write_text("# Foxes\n\nA fox is a small wild dog. Foxes live in dens.\n")
    (docs / "dogs.md").write_text("# Dogs\n\nA dog is a tame animal. Every fox avoids a dog.\n")
    out = tmp_path / "index.sqlite3"
    assert build_index([str(docs), "--out", str(out)]) == 0
    return str(out)


def text_of(events: list[Any]) -> str:
    """The concatenated text of a stream's deltas."""
    return "".join(event.delta.text for event in events)


async def test_a_stream_has_results_then_text_then_citations(index: str) -> None:
    """The prompt quotes the results, and the finish lists citations of results only."""
    async with orchestrator(FakeInference(), index=index) as running:
        request = orchestrator_pb2.SummarizeRequest(query="  fox ")
        async with open_stream(running.stub.SummarizeStream, request) as responses:
            events = [response async for response in responses]
        whole = await call_unary(running.stub.Summarize, request)
    results = events[0].results
    assert results.query == "fox"
    assert [(r.position, r.title, r.url) for r in results.results] == [
        (1, "Foxes", "foxes.md"),
        (2, "Dogs", "dogs.md"),
    ]
    assert text_of(events) == SCRIPT
    assert list(events[-1].finish.citations) == [1, 2]
    assert [detail.position for detail in events[-1].finish.citation_details] == [1, 2]
    assert "A fox is a small wild dog. [1]" in running.tokenizer.prompts[0]
    assert running.engine.requests[0].sampling.temperature == 0
    assert running.engine.requests[0].sampling.max_tokens == 256
    assert whole.results == results
    assert whole.summary == SCRIPT
    assert whole.finish.citations == events[-1].finish.citations


async def test_passages_are_truncated_to_the_context(index: str) -> None:
    """A prompt that would be too long loses its last sentences; the request succeeds."""
    async with orchestrator(FakeInference(context_length=560), index=index) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox", max_tokens=120)
        whole = await call_unary(running.stub.Summarize, request)
    assert len(running.engine.requests[0].token_ids) <= 440
    assert "[1] Foxes" in running.tokenizer.prompts[-1]
    assert len(whole.results.results) == 2


async def test_without_documents_the_prompt_says_so() -> None:
    """A service without an index still returns an answer."""
    async with orchestrator(FakeInference()) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(running.stub.Summarize, request)
    assert len(whole.results.results) == 0
    assert list(whole.finish.citations) == []
    assert "None." in running.tokenizer.prompts[0]


async def summarize(
    running: Orchestrator, **fields: Any
) -> tuple[list[orchestrator_pb2.SummarizeStreamResponse], orchestrator_pb2.SummarizeResponse]:
    """The same search by the streaming and by the unary RPC."""
    request = orchestrator_pb2.SummarizeRequest(**fields)
    async with open_stream(running.stub.SummarizeStream, request) as responses:
        events = [response async for response in responses]
    return events, await call_unary(running.stub.Summarize, request)


ANSWER = "A fox is a small wild dog. [1] Foxes fly to the moon [2]. [7] Dogs are kind. <b>&[9]lt;"
CHECKED = "A fox is a small wild dog. [1] Foxes fly to the moon [2]. Dogs are kind. &lt;b>&amp;lt;"


async def test_citations_are_checked_while_the_text_streams(index: str) -> None:
    """Unknown numbers are removed, each sentence is grounded, markup is escaped."""
    async with orchestrator(FakeInference(ANSWER), index=index) as running:
        events, whole = await summarize(running, query="fox dog")
    assert text_of(events) == whole.summary == CHECKED
    finish = events[-1].finish
    assert finish == whole.finish
    assert list(finish.citations) == [1, 2]
    snippets = {source.position: source.snippet for source in whole.results.results}
    details = [
        (
            each.position,
            CHECKED[each.sentence.begin : each.sentence.end],
            snippets[each.position][each.span.begin : each.span.end]
            if each.HasField("span")
            else None,
        )
        for each in finish.citation_details
    ]
    fox = next(n for n, text in snippets.items() if "wild" in text)
    assert details[:3] == [
        (1, "A fox is a small wild dog.", "A fox is a small wild dog." if fox == 1 else None),
        (2, "Foxes fly to the moon [2].", None),
        (0, "Dogs are kind.", None),
    ]
    assert finish.usage.completion_tokens == len(running.engine.ids)


async def test_tokens_of_held_back_text_are_counted_later(index: str) -> None:
    """The next delta's count includes them, so the counts add up to all generated tokens."""
    text = "Dogs <b> bark [1] & [2] run [99] far."
    async with orchestrator(FakeInference(text), index=index) as running:
        events, _ = await summarize(running, query="fox")
    assert sum(event.delta.num_tokens for event in events) == len(running.engine.ids)


async def test_a_summary_ends_at_the_maximum_length(index: str) -> None:
    """The engine's request is aborted then, and the finish reason is length."""
    settings: dict[str, Any] = {"index": index, "max_summary_characters": 20}
    async with orchestrator(FakeInference("word " * 300), **settings) as running:
        running.engine.delay = 0.002
        events, whole = await summarize(running, query="fox", max_tokens=1000)
    assert text_of(events) == whole.summary == ("word " * 300)[:20]
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert 0 < events[-1].finish.usage.completion_tokens < len(running.engine.ids) / 2


async def test_the_answer_is_bound_to_the_passages(index: str) -> None:
    """By a grammar of the prompt's sentences, or of cited ones, or that nothing was found."""
    async with orchestrator(FakeInference(), index=index, grounded="cite") as running:
        for fields in (
            {"query": "fox", "grounded": orchestrator_pb2.GROUNDED_QUOTE},
            {"query": "fox"},
            {"query": "the telephone of a fox"},
        ):
            await call_unary(running.stub.Summarize, orchestrator_pb2.SummarizeRequest(**fields))
        quoted, cited, nothing = (
            request.sampling.constraint.grammar for request in running.engine.requests
        )
    assert '"A fox is a small wild dog. [1]"' in quoted
    assert "SENTENCE" in cited
    assert nothing == f'start: "{NOTHING_FOUND}"\n'
    assert "None." in running.tokenizer.prompts[2]


class WithoutConstraints(FakeInference):
    """An engine that refuses constraints."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.sampling.HasField("constraint"):
            self.requests.append(request)
            raise invalid("constraint", "constraint is not supported by this engine")
        async for response in super().Generate(request, context):
            yield response


async def test_an_engine_without_constraints_answers(index: str) -> None:
    """Once more without the constraint; the citations are verified as always."""
    async with orchestrator(WithoutConstraints(NOTHING_FOUND), index=index) as running:
        request = orchestrator_pb2.SummarizeRequest(query="fox")
        whole = await call_unary(running.stub.Summarize, request)
        first, second = running.engine.requests
    assert first.sampling.HasField("constraint")
    assert not second.sampling.HasField("constraint")
    assert whole.summary == NOTHING_FOUND
    assert whole.finish.nothing_found
    assert whole.finish.usage.prompt_tokens == len(second.token_ids)


@pytest.mark.parametrize("error", [None, OSError("disk")])
async def test_a_failed_retrieval_is_reported_in_the_summary(
    index: str, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes at most its timeout; the summary then says so, and the model is not run."""
    async with orchestrator(FakeInference(), index=index, retrieval_timeout_seconds=0.1) as running:
        retriever = running.service._pipeline._search._retriever

        async def hang(*_: object) -> list[Any]:
            if error is not None:
                raise error
            await asyncio.sleep(60)
            return []

        monkeypatch.setattr(retriever, "search", hang)
        events, whole = await asyncio.wait_for(summarize(running, query="fox"), 5)
    assert len(whole.results.results) == 0
    assert text_of(events) == whole.summary == RETRIEVAL_FAILED
    assert list(whole.finish.citation_details) == []
    assert running.engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": "   "}, "query"),
        ({"query": "a" * 501}, "query"),
        ({"query": "a\x00b"}, "query"),
        ({"query": "a", "num_results": 21}, "num_results"),
    ],
)
async def test_an_invalid_search_is_refused(fields: dict[str, Any], param: str) -> None:
    """Validation happens before the retrieval."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            await call_unary(running.stub.Summarize, orchestrator_pb2.SummarizeRequest(**fields))
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == param
