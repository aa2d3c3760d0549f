"""Splitting whole documents into passages."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.index.documents import PASSAGE_CHARACTERS
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers import passages
from orchestrator.search.retrievers.passages import rank_passages


async def test_the_passage_with_the_words_of_the_query_ranks_first() -> None:
    """Passages are short, also of a document without spaces."""
    prose = SearchResult("Foxes", "f", 1.0, "The fox is quick. " * 30 + "The cat is lazy. " * 30)
    line = SearchResult("Data", "d", 1.0, "x" * 50_000)
    found = await rank_passages([line, prose], "lazy cat", 500)
    assert "cat is lazy" in found[0].text
    assert max(len(result.text) for result in found) <= 2 * PASSAGE_CHARACTERS
    assert len({result.url for result in found}) == 2


async def test_documents_beyond_the_limit_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first documents, which are the best, are read."""
    monkeypatch.setattr(passages, "MAX_TOTAL_CHARACTERS", 1000)
    documents = [SearchResult("a", str(n), 1.0, "The fox is quick. " * 30) for n in range(5)]
    found = await rank_passages(documents, "fox", 500)
    assert {result.url for result in found} == {"0", "1"}


async def test_ranking_leaves_the_event_loop() -> None:
    """The loop runs while long documents are split."""
    documents = [SearchResult("a", str(n), 1.0, "The fox is quick. " * 3000) for n in range(5)]
    ranking = asyncio.create_task(rank_passages(documents, "fox", 5))
    num_turns = 0
    while not ranking.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    assert num_turns > 3
    assert len(await ranking) == 5
