"""What a search does with slow and broken retrieval, and with too little room."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from orchestrator.clients.tokenizer import ChatPrompt, Encoded, LocalTokenizer
from orchestrator.generation import ModelInfo
from orchestrator.search.retrieval import Result
from orchestrator.search.search import Search
from orchestrator.text.detokenizer import Decoder
from tests.orchestrator.tokenizers_made import byte_level

RESULTS = [
    Result("Foxes", "f", 3.0, "The fox is wild. The fox is quick. The fox is brown."),
    Result("Dogs", "d", 2.0, "The dog is lazy. The dog sleeps."),
    Result("Cats", "c", 1.0, "The cat is quiet."),
]


class FakeTokenizer:
    """Encodes in this process; a conversation is its contents, one a line."""

    def __init__(self) -> None:
        self.prompt = ""

    def of(self, model: str) -> FakeTokenizer:
        """The same for every model."""
        return self

    async def current(self) -> LocalTokenizer:
        return LocalTokenizer(byte_level(), Decoder(byte_level()))

    async def encode_chat(self, prompt: ChatPrompt) -> Encoded:
        self.prompt = "\n".join(message.content for message in prompt.messages)
        return Encoded(byte_level().encode(self.prompt).ids, (await self.current()).decoder)


async def encode(room: int, results: Sequence[Result] = RESULTS) -> tuple[Encoded, list[list[str]]]:
    """What is encoded for a context with `room` for a prompt, and its sources' lines."""
    tokenizer: Any = FakeTokenizer()
    search = Search(FakeRetriever(), tokenizer, 5.0)
    prompt = await search.encode("fox", results, 100, ModelInfo("m", room + 100))
    sources = tokenizer.prompt.split("Sources:\n\n")[1].split("\n\n")[:-1]
    assert prompt.num_passages == (0 if sources == ["None."] else len(sources))
    return prompt.encoded, [source.splitlines() for source in sources]


WHOLE = [
    ["[1] Foxes", "The fox is wild. [1]", "The fox is quick. [1]", "The fox is brown. [1]"],
    ["[2] Dogs", "The dog is lazy. [2]", "The dog sleeps. [2]"],
    ["[3] Cats", "The cat is quiet. [3]"],
]


async def test_everything_stays_where_there_is_room() -> None:
    """Nothing is cut off, and the order is kept."""
    assert (await encode(10_000))[1] == WHOLE


async def test_a_prompt_fits_whatever_the_room() -> None:
    """Later passages give way first, by whole sentences; numbers stay."""
    full = len((await encode(10_000))[0].token_ids)
    none = len((await encode(10_000, []))[0].token_ids)
    seen = set()
    for room in range(full, none - 1, -3):
        encoded, sources = await encode(room)
        assert len(encoded.token_ids) <= room
        if sources == [["None."]]:
            sources = []
        seen.add(len(sources))
        assert sources[:-1] == WHOLE[: len(sources) - 1] if sources else True
        for whole, source in zip(WHOLE, sources, strict=False):
            assert source == whole[: len(source)]
            assert len(source) > 1
    assert {0, 1, 2} <= seen


async def test_no_room_for_the_question_is_the_callers_fault() -> None:
    """The message names the field, the limit and the value."""
    with pytest.raises(MeshError, match="context of 110 tokens, given 100") as caught:
        await encode(10)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "max_tokens"


class FakeRetriever:
    """Gives what it has, after a time."""

    name = "fake"

    def __init__(self, *, delay: float = 0.0, error: Exception | None = None) -> None:
        self.delay = delay
        self.error = error
        self.cancelled = False

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.error is not None:
            raise self.error
        return [Result("Foxes", "u", 1.0, "t")][:limit]

    async def close(self) -> None:
        return None


def search(retriever: FakeRetriever, timeout_seconds: float = 5.0) -> Search:
    """A search that never asks its tokenizer."""
    tokenizer: Any = None
    return Search(retriever, tokenizer, timeout_seconds)


async def test_what_is_found_is_given() -> None:
    """As the retriever ranked it."""
    retrieved = await search(FakeRetriever()).find("fox", 5, False)
    assert [result.title for result in retrieved.results] == ["Foxes"]
    assert not retrieved.failed


@pytest.mark.timeout(5)
async def test_a_slow_search_is_left_at_the_limit() -> None:
    """It costs its limit, gives nothing, and goes on nowhere."""
    retriever = FakeRetriever(delay=60)
    begun = asyncio.get_running_loop().time()
    assert await search(retriever, 0.05).find("fox", 5, False) == ([], True)
    assert 0.04 <= asyncio.get_running_loop().time() - begun < 2
    assert retriever.cancelled


@pytest.mark.parametrize("error", [RuntimeError("disk"), OSError("gone"), TimeoutError()])
async def test_a_broken_search_finds_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The request goes on, knows that nothing could be searched, and the log says why."""
    assert await search(FakeRetriever(error=error)).find("fox", 5, False) == ([], True)
    assert "retrieval" in caplog.text


async def test_a_caller_that_leaves_ends_the_search() -> None:
    """Being cancelled is not taken for a failure of the search."""
    retriever = FakeRetriever(delay=60)
    finding = asyncio.create_task(search(retriever).find("fox", 5, False))
    await asyncio.sleep(0.01)
    finding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finding
    assert retriever.cancelled
