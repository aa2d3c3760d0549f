"""Search: slow and failing retrieval, and prompts that must fit a small context."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.chat import ChatPrompt
from mesh.protocol.summary import Grounded
from mesh.text.detokenizer import Decoder
from orchestrator.clients.tokenizer import Encoded, LocalTokenizer
from orchestrator.generation import ModelInfo
from orchestrator.search.conversation.rewriting import Rewrite
from orchestrator.search.retrieval import (
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    SearchResult,
)
from orchestrator.search.search import Search
from tests.orchestrator.tokenizers_made import byte_level

RESULTS = [
    SearchResult("Foxes", "f", 3.0, "The fox is wild. The fox is quick. The fox is brown."),
    SearchResult("Dogs", "d", 2.0, "The dog is lazy. The dog sleeps."),
    SearchResult("Cats", "c", 1.0, "The cat is quiet."),
]


class FakeTokenizer:
    """Encodes in this process; renders a conversation as its contents, one per line."""

    def __init__(self) -> None:
        self.prompt = ""

    def of(self, model: str) -> FakeTokenizer:
        """Returns the same tokenizer for every model."""
        return self

    async def current(self) -> LocalTokenizer:
        return LocalTokenizer(byte_level(), Decoder(byte_level()))

    async def encode_chat(self, prompt: ChatPrompt) -> Encoded:
        self.prompt = "\n".join(message.content for message in prompt.messages)
        return Encoded(byte_level().encode(self.prompt).ids, (await self.current()).decoder)


async def build(
    limit: int, results: Sequence[SearchResult] = RESULTS
) -> tuple[Encoded, list[list[str]]]:
    """The encoded prompt for a limit of `limit` tokens, and the lines of each of its sources."""
    tokenizer: Any = FakeTokenizer()
    search = Search(FakeRetriever(), tokenizer, 5.0)
    prompt = await search.build_prompt(
        Rewrite("fox", ["fox"]), results, 100, ModelInfo("m", limit + 100), Grounded.QUOTE
    )
    sources = tokenizer.prompt.split("Sources:\n\n")[1].split("\n\n")[:-1]
    assert prompt.num_passages == (0 if sources == ["None."] else len(sources))
    return prompt.prepared.encoded, [source.splitlines() for source in sources]


WHOLE = [
    ["[1] Foxes", "The fox is wild. [1]", "The fox is quick. [1]", "The fox is brown. [1]"],
    ["[2] Dogs", "The dog is lazy. [2]", "The dog sleeps. [2]"],
    ["[3] Cats", "The cat is quiet. [3]"],
]


async def test_a_large_context_keeps_every_sentence() -> None:
    """Nothing is truncated, and the order is kept."""
    assert (await build(10_000))[1] == WHOLE


async def test_the_prompt_fits_every_limit() -> None:
    """Later passages are truncated first, by whole sentences; numbers do not change."""
    full = len((await build(10_000))[0].token_ids)
    none = len((await build(10_000, []))[0].token_ids)
    seen = set()
    for limit in range(full, none - 1, -3):
        encoded, sources = await build(limit)
        assert len(encoded.token_ids) <= limit
        if sources == [["None."]]:
            sources = []
        seen.add(len(sources))
        assert sources[:-1] == WHOLE[: len(sources) - 1] if sources else True
        for whole, source in zip(WHOLE, sources, strict=False):
            assert source == whole[: len(source)]
            assert len(source) > 1
    assert {0, 1, 2} <= seen


async def test_max_tokens_that_leaves_no_room_is_refused() -> None:
    """The message has the context, what was requested and the field to change."""
    none = len((await build(10_000, []))[0].token_ids)
    for limit, param in ((none - 1, "max_tokens"), (none - 100, "query")):
        message = (
            rf"maximum context length is {limit + 100} tokens\. However, you requested "
            rf"{none + 100} tokens \({none} for the question, 100 in the summary\)\. "
            f"Please reduce {param}"
        )
        with pytest.raises(MeshError, match=message) as caught:
            await build(limit)
        assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG
        assert caught.value.param == param


class FakeRetriever:
    """Returns one result, or raises an error, after a delay."""

    name = "fake"

    def __init__(
        self,
        *,
        delay: float = 0.0,
        error: Exception | None = None,
        found: SearchResult | None = None,
    ) -> None:
        self.delay = delay
        self.found = found or SearchResult("Foxes", "u", 1.0, "t")
        self.error = error
        self.cancelled = False

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return [self.found][:limit]

    async def close(self) -> None:
        return None


def search(retriever: FakeRetriever, timeout_seconds: float = 5.0) -> Search:
    """A search without a tokenizer, for tests of retrieval only."""
    tokenizer: Any = None
    return Search(retriever, tokenizer, timeout_seconds)


async def test_retrieval_returns_the_results() -> None:
    """In the retriever's order, and not marked as failed."""
    retrieved = await search(FakeRetriever()).retrieve(["fox"], 5, False)
    assert [result.title for result in retrieved.results] == ["Foxes"]
    assert not retrieved.failed


async def test_a_result_has_a_size_limit() -> None:
    """Whatever the backend returns: title, URL and text are limited."""
    large = SearchResult("t" * 9000, "http://" + "u" * 9000, 1.0, "x" * 9_000_000)
    retrieved = await search(FakeRetriever(found=large)).retrieve(["fox"], 5, False)
    [result] = retrieved.results
    assert result.title == "t" * MAX_TITLE_CHARACTERS
    assert result.url == ""
    assert result.text == "x" * MAX_TEXT_CHARACTERS
    assert not retrieved.failed


@pytest.mark.timeout(5)
async def test_slow_retrieval_times_out() -> None:
    """It takes no longer than the timeout, returns no results, and is cancelled."""
    retriever = FakeRetriever(delay=60)
    begun = asyncio.get_running_loop().time()
    assert await search(retriever, 0.05).retrieve(["fox"], 5, False) == ([], True, [])
    assert 0.04 <= asyncio.get_running_loop().time() - begun < 2
    assert retriever.cancelled


class SlowForSome(FakeRetriever):
    """Never answers a query that has the word slow, and fails for one with the word bad."""

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        if "slow" in query:
            await asyncio.Event().wait()
        if "bad" in query:
            raise OSError("disk")
        return [SearchResult(query, query, 1.0, query)]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("queries", "titles", "failed"),
    [
        (["fox", "slow", "dog"], ["fox", "dog"], False),
        (["slow", "bad", "dog"], ["dog"], False),
        (["slow", "bad"], [], True),
    ],
)
async def test_a_slow_query_does_not_lose_the_results_of_the_others(
    queries: list[str], titles: list[str], failed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What is found in time is returned; only without any result the retrieval has failed."""
    retrieved = await search(SlowForSome(), 0.05).retrieve(queries, 5, False)
    assert sorted(result.title for result in retrieved.results) == sorted(titles)
    assert retrieved.failed is failed
    message = "retrieval timed out" if failed else "queries of a retrieval failed"
    assert message in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("disk"), OSError("gone"), TimeoutError()])
async def test_failing_retrieval_returns_no_results(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The request continues, the outcome is marked as failed, and the error is logged."""
    assert await search(FakeRetriever(error=error)).retrieve(["fox"], 5, False) == ([], True, [])
    assert "retrieval" in caplog.text


async def test_cancelling_the_caller_cancels_retrieval() -> None:
    """Cancellation propagates and does not count as a failed retrieval."""
    retriever = FakeRetriever(delay=60)
    retrieving = asyncio.create_task(search(retriever).retrieve(["fox"], 5, False))
    await asyncio.sleep(0.01)
    retrieving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await retrieving
    assert retriever.cancelled
