"""Splits whole documents into passages, for search backends that return documents."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence

from orchestrator.index.documents import Section, split_section
from orchestrator.search.grounding.stemming import STOP_WORDS, split_words, stem
from orchestrator.search.retrieval import MAX_TITLE_CHARACTERS, SearchResult

MAX_CHARACTERS = 200_000
"""Maximum characters read of one document; the rest is ignored."""

MAX_TOTAL_CHARACTERS = 1_000_000
"""Maximum characters read of all documents of one search; further documents are ignored."""


def query_stems(query: str) -> frozenset[str]:
    """The stems of the query's words; stop words count only if the query has no other words."""
    words = split_words(query)
    return frozenset(stem(word) for word in words if word not in STOP_WORDS) or frozenset(
        map(stem, words)
    )


async def rank_passages(
    documents: Sequence[SearchResult], query: str, limit: int
) -> list[SearchResult]:
    """Returns at most `limit` passages of `documents`, which are sorted by score; best first.

    A passage's score is its document's score, down to half of it if query words are missing.
    """
    # In a thread: long documents take up to a second.
    return await asyncio.to_thread(_rank, documents, query, limit)


def _rank(documents: Sequence[SearchResult], query: str, limit: int) -> list[SearchResult]:
    stems = query_stems(query)
    found: list[SearchResult] = []
    num_left = MAX_TOTAL_CHARACTERS
    for document in documents:
        text = document.text[: min(MAX_CHARACTERS, num_left)]
        num_left -= len(text)
        found += _split(document._replace(text=text), stems)
    return sorted(found, key=lambda result: -result.score)[:limit]


def _split(document: SearchResult, stems: Collection[str]) -> Iterator[SearchResult]:
    title = document.title[:MAX_TITLE_CHARACTERS]
    paragraphs = [" ".join(document.text.split())]
    for passage in split_section(Section("", paragraphs)):
        contained = {stem(word) for word in split_words(f"{title} {passage.text}")}
        share = sum(word in contained for word in stems) / max(len(stems), 1)
        yield document._replace(text=passage.text, score=document.score * (1 + share) / 2)
