"""Splits whole documents into passages, for search backends that return documents."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from orchestrator.index.documents import Section, split_section
from orchestrator.search.grounding.stemming import STOP_WORDS, split_words, stem
from orchestrator.search.retrieval import SearchResult

MAX_CHARACTERS = 200_000
"""Maximum characters read of one document; the rest is ignored."""


def query_stems(query: str) -> frozenset[str]:
    """The stems of the query's words; stop words count only if the query has no other words."""
    words = split_words(query)
    return frozenset(stem(word) for word in words if word not in STOP_WORDS) or frozenset(
        map(stem, words)
    )


def rank_passages(documents: Iterable[SearchResult], query: str, limit: int) -> list[SearchResult]:
    """Returns at most `limit` passages of `documents`, best first.

    A passage's score is its document's score, down to half of it if query words are missing.
    """
    stems = query_stems(query)
    found = [passage for document in documents for passage in _split(document, stems)]
    return sorted(found, key=lambda result: -result.score)[:limit]


def _split(document: SearchResult, stems: Collection[str]) -> Iterator[SearchResult]:
    paragraphs = [" ".join(document.text[:MAX_CHARACTERS].split())]
    for passage in split_section(Section("", paragraphs)):
        contained = {stem(word) for word in split_words(f"{document.title} {passage.text}")}
        share = sum(word in contained for word in stems) / max(len(stems), 1)
        yield document._replace(text=passage.text, score=document.score * (1 + share) / 2)
