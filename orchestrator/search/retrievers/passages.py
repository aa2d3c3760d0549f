"""Splits whole documents into passages, for search backends that return documents."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from math import log
from typing import NamedTuple

from orchestrator.index.documents import split_section
from orchestrator.index.formats import Section
from orchestrator.search.language.languages import detect_language
from orchestrator.search.language.terms import index_terms, query_groups
from orchestrator.search.retrieval import MAX_TITLE_CHARACTERS, SearchResult

MAX_CHARACTERS = 200_000
"""Maximum characters read of one document; the rest is ignored."""

MAX_TOTAL_CHARACTERS = 1_000_000
"""Maximum characters read of all documents of one search; further documents are ignored."""


async def rank_passages(
    documents: Sequence[SearchResult], query: str, limit: int, per_document: int | None = None
) -> list[SearchResult]:
    """Returns at most `limit` passages of `documents`, which are sorted by score; best first.

    A passage's score is its document's score, down to half of it if query words are missing; a
    word that few of the passages contain counts more. `per_document` is the maximum number of
    passages of one document.
    """
    # In a thread: long documents take up to a second.
    return await asyncio.to_thread(_rank, documents, query, limit, per_document)


class _Passage(NamedTuple):
    result: SearchResult
    found: frozenset[int]
    """Numbers of the query's words that it contains."""


def _rank(
    documents: Sequence[SearchResult], query: str, limit: int, per_document: int | None
) -> list[SearchResult]:
    split: list[list[_Passage]] = []
    num_left = MAX_TOTAL_CHARACTERS
    for document in documents:
        text = document.text[: min(MAX_CHARACTERS, num_left)]
        num_left -= len(text)
        split.append(list(_split(document._replace(text=text), query)))
    weights = _weights([passage.found for passages in split for passage in passages])
    total = sum(weights.values()) or 1.0
    ranked: list[SearchResult] = []
    for passages in split:
        results = [
            each.result._replace(
                score=each.result.score
                * (1 + sum(map(weights.__getitem__, each.found)) / total)
                / 2
            )
            for each in passages
        ]
        ranked += sorted(results, key=lambda result: -result.score)[:per_document]
    return sorted(ranked, key=lambda result: -result.score)[:limit]


def _weights(found: Sequence[frozenset[int]]) -> dict[int, float]:
    """The inverse document frequency of each query word, among the passages."""
    counts = Counter(chain.from_iterable(found))
    return {word: log(1 + len(found) / count) for word, count in counts.items()}


def _split(document: SearchResult, query: str) -> Iterator[_Passage]:
    title = document.title[:MAX_TITLE_CHARACTERS]
    language = detect_language(document.text)
    groups = query_groups(query, [language])
    paragraphs = [" ".join(document.text.split())]
    for passage in split_section(Section("", paragraphs), language or "en"):
        contained = set(index_terms(f"{title} {passage.text}", language))
        found = (number for number, group in enumerate(groups) if not contained.isdisjoint(group))
        yield _Passage(document._replace(text=passage.text), frozenset(found))
