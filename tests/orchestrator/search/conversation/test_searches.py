"""Searches of a conversation over gRPC: rewriting, several queries, stages, related questions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import orchestrator_pb2
from orchestrator import pipeline
from orchestrator.index.build import main as build_index
from orchestrator.search.conversation.examples import MAX_AGE_SECONDS, Examples
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.search import RetrievalOutcome
from tests.clock import Clock
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator

ANSWER = "A fox is a small wild dog. [1]"
HISTORY = [orchestrator_pb2.SearchTurn(query="What is a fox?", summary=ANSWER)]


@pytest.fixture
def index(tmp_path: Path) -> str:
    """Path of an index of three documents."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "foxes.md").write_text("# Fox\n\nA fox is a small wild dog. Foxes live in dens.\n")
    (docs / "dogs.md").write_text("# Dog\n\nA dog is a tame animal. Every fox avoids a dog.\n")
    (docs / "dens.md").write_text("# Den\n\nA den is a home of foxes. It is a hole.\n")
    out = tmp_path / "index.sqlite3"
    assert build_index([str(docs), "--out", str(out)]) == 0
    return str(out)


class Rewriting(FakeInference):
    """Rewrites a question to `rewritten`, and answers with the text."""

    rewritten: object = None

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        if (
            request.sampling.constraint.HasField("json_schema")
            if request.sampling.HasField("constraint")
            else False
        ):
            writer = FakeInference(json.dumps(self.rewritten))
            writer.accept_delay, writer.refusal = self.accept_delay, self.refusal
            self.requests.append(request)
            async for response in writer.Generate(request, context):
                yield response
            return
        async for response in super().Generate(request, context):
            yield response


async def search(running: Orchestrator, **fields: Any) -> list[Any]:
    """The events of one search."""
    request = orchestrator_pb2.SummarizeRequest(**fields)
    async with open_stream(running.stub.SummarizeStream, request) as responses:
        return [response async for response in responses]


def names(events: list[Any]) -> list[str]:
    """The kinds of the events, each once in a row."""
    kinds = [event.WhichOneof("event") for event in events]
    return [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]


async def test_a_question_is_rewritten_and_split(index: str) -> None:
    """Once, under a schema; its queries are searched for, and its tokens are counted."""
    engine = Rewriting(ANSWER)
    engine.rewritten = {"question": "Where do foxes and dogs live?", "searches": ["fox den", "dog"]}
    async with orchestrator(engine, index=index) as running:
        events = await search(running, query="where?", history=HISTORY, num_related=2)
    assert names(events) == ["status", "results", "status", "delta", "finish", "related"]
    assert [event.status.stage for event in events if event.HasField("status")] == [1, 2, 3]
    searches = ["fox den", "dog"]
    assert list(events[1].status.searches) == list(events[2].results.searches) == searches
    assert {each.title for each in events[2].results.results} == {"Fox", "Dog", "Den"}
    assert events[2].results.query == "where?"
    rewriting, answering = engine.requests
    first, second = running.tokenizer.prompts
    assert "Question: What is a fox?" in first
    assert "Question: Where do foxes and dogs live?" in second
    usage = events[-2].finish.usage
    assert usage.prompt_tokens == len(rewriting.token_ids) + len(answering.token_ids)
    assert usage.completion_tokens > len(engine.ids)
    assert list(events[-1].related.questions) == ["What is a den?"]


@pytest.mark.parametrize("problem", ["slow", "refused", "invalid"])
async def test_a_failed_rewriting_adds_the_subject(index: str, problem: str) -> None:
    """After its time, or an error, or an answer that is cut off: the search goes on."""
    engine = Rewriting(ANSWER)
    engine.rewritten = {"question": "?!", "searches": ["x"]}
    settings: dict[str, Any] = {"index": index}
    if problem == "slow":
        engine.accept_delay, settings["rewrite_timeout_seconds"] = 0.3, 0.05
    async with orchestrator(engine, **settings) as running:
        if problem == "refused":
            complete = running.service._pipeline._complete

            async def refuse(*_: object) -> str:
                raise MeshError(ErrorKind.OVERLOADED, "full")

            assert complete is not None
            running.service._pipeline._complete = refuse  # type: ignore[method-assign]
        events = await search(running, query="where does it live?", history=HISTORY)
    [searching] = [each for each in events if each.status.stage == 2]
    assert list(searching.status.searches) == ["where does it live? fox"]
    assert events[-1].finish.citations == [1]


@pytest.mark.parametrize("problem", ["late", "fails"])
async def test_an_answer_does_not_fail_with_its_related_questions(
    index: str, problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is complete; there are none then."""
    released = threading.Event()

    def make(*_: object) -> list[str]:
        if problem == "fails":
            raise RuntimeError("bug")
        released.wait(10)
        return ["What is late?"]

    monkeypatch.setattr(pipeline, "related_questions", make)
    monkeypatch.setattr(pipeline, "RELATED_TIMEOUT_SECONDS", 0.05)
    try:
        async with orchestrator(FakeInference(ANSWER), index=index) as running:
            events = await search(running, query="fox", num_related=2)
    finally:
        released.set()
    assert events[-2].finish.citations == [1]
    assert list(events[-1].related.questions) == []
    assert "no related questions" in caplog.text


async def test_a_search_alone_has_its_old_events(index: str) -> None:
    """No stages, no queries; it is not rewritten."""
    async with orchestrator(FakeInference(ANSWER), index=index) as running:
        events = await search(running, query="fox")
        whole = await call_unary(
            running.stub.Summarize, orchestrator_pb2.SummarizeRequest(query="fox", num_related=1)
        )
    assert names(events) == ["results", "delta", "finish"]
    assert list(events[0].results.searches) == []
    [question] = whole.related.questions
    assert question in ("What is a dog?", "What is a den?")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"history": HISTORY * 21}, "history"),
        ({"history": [orchestrator_pb2.SearchTurn()]}, "history[0].query"),
        ({"history": [orchestrator_pb2.SearchTurn(query="a", summary="b" * 20_001)]},
         "history[0].summary"),
        ({"max_searches": 6}, "max_searches"),
        ({"num_related": 4}, "num_related"),
    ],
)  # fmt: skip
async def test_an_invalid_conversation_is_refused(fields: dict[str, Any], param: str) -> None:
    """Before anything is searched for."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            await search(running, query="a", **fields)
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, param)


async def test_the_documents_suggest_questions(index: str) -> None:
    """Made of their definitions."""
    async with orchestrator(FakeInference(), index=index) as running:
        suggest = running.stub.SuggestQuestions
        found = await call_unary(suggest, orchestrator_pb2.SuggestQuestionsRequest())
        with pytest.raises(MeshError, match="num_questions must be between 1 and 10, given 11"):
            await call_unary(suggest, orchestrator_pb2.SuggestQuestionsRequest(num_questions=11))
    assert set(found.questions) == {"What is a fox?", "What is a dog?", "What is a den?"}


async def test_callers_at_the_same_time_share_a_search() -> None:
    """A page that many open asks once; a caller that leaves does not end the search of others."""
    may_end, num_calls = asyncio.Event(), 0

    class SlowSearch:
        async def retrieve(self, *_: object, **__: object) -> RetrievalOutcome:
            nonlocal num_calls
            num_calls += 1
            await may_end.wait()
            found = [SearchResult("Fox", "Fox", 1.0, "Fox is a thing.")]
            return RetrievalOutcome((), candidates=found, failed=num_calls == 2)

    slow: Any = SlowSearch()
    clock = Clock()
    examples = Examples(slow, clock.monotonic)
    first, *others = [asyncio.create_task(examples.questions(3)) for _ in range(10)]
    await asyncio.sleep(0)
    first.cancel()
    may_end.set()
    # The first one's search ends with it; the next one is for all others, though it fails.
    assert await asyncio.gather(*others) == [()] * 9
    assert num_calls == 2
    assert (
        await asyncio.gather(*(examples.questions(3) for _ in range(10))) == [["What is fox?"]] * 10
    )
    assert num_calls == 3


async def test_suggestions_are_kept_for_a_while() -> None:
    """A failed search is not kept."""
    searches = [RetrievalOutcome((), failed=True)] + [
        RetrievalOutcome((), candidates=[SearchResult(name, name, 1.0, f"{name} is a thing.")])
        for name in ("Fox", "Lair")
    ]

    class FakeSearch:
        async def retrieve(self, *_: object, **__: object) -> RetrievalOutcome:
            return searches.pop(0)

    clock = Clock()
    fake: Any = FakeSearch()
    examples = Examples(fake, clock.monotonic)
    assert await examples.questions(3) == ()
    assert await examples.questions(3) == ["What is fox?"]
    assert await examples.questions(3) == ["What is fox?"]
    clock.now += MAX_AGE_SECONDS
    assert await examples.questions(3) == ["What is lair?"]
    assert await examples.questions(0) == []
