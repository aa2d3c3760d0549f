"""Whole documents as passages, for what is searched by document."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from orchestrator.index.documents import Section, cut
from orchestrator.search.grounding.words import STOP_WORDS, stem, words_of
from orchestrator.search.retrieval import Result

MAX_CHARACTERS = 200_000
"""Of one document: what is behind is not looked at."""


def query_stems(query: str) -> frozenset[str]:
    """The stems that a passage is looked through for; stop words only where there is no other."""
    words = words_of(query)
    return frozenset(stem(word) for word in words if word not in STOP_WORDS) or frozenset(
        map(stem, words)
    )


def passages(documents: Iterable[Result], query: str, limit: int) -> list[Result]:
    """The best passages of `documents`, best first, at most `limit`.

    A passage has its document's score, less where it has fewer of the words of `query`.
    """
    wanted = query_stems(query)
    found = [each for document in documents for each in _of(document, wanted)]
    return sorted(found, key=lambda result: -result.score)[:limit]


def _of(document: Result, wanted: Collection[str]) -> Iterator[Result]:
    paragraphs = [" ".join(document.text[:MAX_CHARACTERS].split())]
    for passage in cut(Section("", paragraphs)):
        said = {stem(word) for word in words_of(f"{document.title} {passage.text}")}
        share = sum(word in said for word in wanted) / max(len(wanted), 1)
        yield document._replace(text=passage.text, score=document.score * (1 + share) / 2)
