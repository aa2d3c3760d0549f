"""Searches the embedded index: an SQLite file built by `python -m orchestrator.index`."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator.index.database import sqlite3
from orchestrator.index.schema import MAX_PASSAGES
from orchestrator.index.vectors import EmbeddingModel, quantize
from orchestrator.search.language.terms import query_terms
from orchestrator.search.retrieval import (
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    SearchResult,
)
from orchestrator.search.retrievers.index_file import IndexConnection, OpenIndex
from orchestrator.search.retrievers.index_words import expression, searched_terms

NUM_THREADS = 2
MAX_CANDIDATES = 200
"""Number of best BM25 matches that are ranked; a document may have many matching passages."""

PROGRESS_HANDLER_STEPS = 10_000
"""SQLite instructions between two checks for cancellation; about 0.1 ms."""

MAX_EXACT_PASSAGES = 10_000
"""Passages of which all vectors are compared in 8 bits; of more, the signs are compared first."""

COARSE_CANDIDATES = 8
"""Candidates by signs for each wanted result."""

# A match in the title counts more than one in the text.
_TITLE_WEIGHT, _HEADING_WEIGHT, _TEXT_WEIGHT = 6.0, 2.0, 1.0

_LEAD_BONUS = 0.25
"""Relative bonus of a document's first passage, which usually defines its subject."""

_OTHERS_SHARE = 0.2
"""Weight of the other matching passages of the same document in a passage's score."""

_TITLE_SHARE_BONUS = 0.5
"""Relative bonus of a document whose title matches completely."""

_PREFIX_CHARACTERS = 5
"""Two words that begin alike for this length count as equal in a title."""

Found = TypeVar("Found")


class IndexRetriever:
    """Full-text search by BM25 (SQLite FTS5) and by vectors, in a small thread pool."""

    name = "embedded"

    def __init__(self, path: str | Path) -> None:
        """Opens the index. Raises IndexUnusable."""
        self._connections = [IndexConnection(Path(path)) for _ in range(NUM_THREADS)]
        self._free = self._connections.copy()
        """As many as threads, so that each search finds one; `pop` and `append` are atomic."""
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="retrieval")

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        def find(index: OpenIndex, cancelled: threading.Event) -> list[SearchResult]:
            index.connection.set_progress_handler(cancelled.is_set, PROGRESS_HANDLER_STEPS)
            terms, corrections = searched_terms(query, index)
            hits = _find(index, terms, safe_search) if terms else []
            corrected = tuple(corrections.items())
            ranked = rank_hits(hits, terms)[:limit]
            return [each._replace(corrections=corrected) for each in ranked]

        return await self._run(find)

    async def embedding_model(self) -> EmbeddingModel | None:
        return await self._run(lambda index, _: index.embedding)

    async def search_vectors(
        self, query: str, vector: Sequence[float], limit: int, safe_search: bool
    ) -> list[SearchResult]:
        def find(index: OpenIndex, cancelled: threading.Event) -> list[SearchResult]:
            # The file may have been replaced since the query was embedded.
            if index.embedding is None or index.embedding.dimensions != len(vector):
                return []
            return _find_nearest(index, vector, limit, safe_search, cancelled)

        return await self._run(find)

    async def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    async def _run(self, find: Callable[[OpenIndex, threading.Event], Found]) -> Found:
        cancelled = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._find, find, cancelled
            )
        finally:
            # An abandoned query must not occupy a thread that later queries need.
            cancelled.set()

    def _find(
        self, find: Callable[[OpenIndex, threading.Event], Found], cancelled: threading.Event
    ) -> Found:
        index = self._free.pop()
        try:
            try:
                return find(index.current(), cancelled)
            except sqlite3.Error:
                if cancelled.is_set():
                    raise
                # The file may have been overwritten since it was opened.
                return find(index.reopen(), cancelled)
        finally:
            self._free.append(index)


_SELECT = f"""
SELECT best.id, best.score, substr(documents.title, 1, ?), documents.url,
    substr(passages.text, 1, ?)
FROM best JOIN passages ON passages.id = best.id
JOIN documents ON documents.id = best.id / {MAX_PASSAGES}
ORDER BY best.score DESC, best.id
"""

_MATCH = f"""
WITH best AS MATERIALIZED (
    SELECT rowid AS id, -bm25(terms, ?, ?, ?) AS score FROM terms
    WHERE terms MATCH ? AND NOT (
        ? AND rowid / {MAX_PASSAGES} IN (SELECT id FROM documents WHERE unsafe)
    )
    ORDER BY score DESC LIMIT ?
)
"""

_NEAREST = """
WITH best AS MATERIALIZED (
    SELECT vectors.id, 1 - vec_distance_cosine(vec_int8(fine), vec_int8(?)) AS score
    FROM vectors JOIN signs ON signs.id = vectors.id
    WHERE NOT (? AND unsafe) ORDER BY score DESC LIMIT ?
)
"""

_NEAREST_BY_SIGNS = """
WITH near AS MATERIALIZED (
    SELECT id FROM signs WHERE NOT (? AND unsafe)
    ORDER BY vec_distance_hamming(vec_bit(coarse), vec_bit(?)) LIMIT ?
), best AS MATERIALIZED (
    SELECT near.id, 1 - vec_distance_cosine(vec_int8(fine), vec_int8(?)) AS score
    FROM near JOIN vectors ON vectors.id = near.id
    ORDER BY score DESC LIMIT ?
)
"""


def _find(index: OpenIndex, terms: Sequence[str], safe_search: bool) -> list[Hit]:
    """The best matches; raises sqlite3.OperationalError soon after the search is cancelled."""
    rows = index.connection.execute(
        _MATCH + _SELECT,
        (
            _TITLE_WEIGHT,
            _HEADING_WEIGHT,
            _TEXT_WEIGHT,
            expression(terms, index),
            safe_search,
            MAX_CANDIDATES,
            MAX_TITLE_CHARACTERS,
            MAX_TEXT_CHARACTERS,
        ),
    )
    return [Hit(*row) for row in rows]


def _find_nearest(
    index: OpenIndex,
    vector: Sequence[float],
    limit: int,
    safe_search: bool,
    cancelled: threading.Event,
) -> list[SearchResult]:
    index.connection.set_progress_handler(cancelled.is_set, PROGRESS_HANDLER_STEPS)
    coarse, fine = quantize(vector)
    arguments: tuple[object, ...]
    if index.num_passages <= MAX_EXACT_PASSAGES:
        query, arguments = _NEAREST, (fine, safe_search, limit)
    else:
        num_near = COARSE_CANDIDATES * limit
        query, arguments = _NEAREST_BY_SIGNS, (safe_search, coarse, num_near, fine, limit)
    rows = index.connection.execute(
        query + _SELECT, (*arguments, MAX_TITLE_CHARACTERS, MAX_TEXT_CHARACTERS)
    )
    hits = [Hit(*row) for row in rows]
    return [SearchResult(hit.title, hit.url, hit.score, hit.text) for hit in hits]


class Hit(NamedTuple):
    """A passage that matches the query, with its BM25 score or its cosine similarity."""

    rowid: int
    score: float
    title: str
    url: str
    text: str

    @property
    def document(self) -> int:
        """Id of the passage's document."""
        return self.rowid // MAX_PASSAGES

    @property
    def weight(self) -> float:
        """The score, with the bonus of a first passage."""
        return self.score * (1 + _LEAD_BONUS * (self.rowid % MAX_PASSAGES == 0))


def rank_hits(hits: Sequence[Hit], terms: Sequence[str]) -> list[SearchResult]:
    """Ranks passages, best first; other matches in the same document raise a passage's score."""
    totals: defaultdict[int, float] = defaultdict(float)
    factors: dict[int, float] = {}
    for hit in hits:
        totals[hit.document] += hit.score
        if hit.document not in factors:
            factors[hit.document] = _title_factor(hit.title, terms)
    results = []
    for hit in hits:
        others = totals[hit.document] - hit.score
        score = (hit.weight + _OTHERS_SHARE * others) * factors[hit.document]
        results.append(SearchResult(title=hit.title, url=hit.url, score=score, text=hit.text))
    return sorted(results, key=lambda result: -result.score)


def _title_factor(title: str, terms: Sequence[str]) -> float:
    words = query_terms(title, ())
    initials = "".join(word[0] for word in words)
    prefixes = tuple(term[:_PREFIX_CHARACTERS] for term in terms)
    matched = sum(word.startswith(prefixes) for word in words)
    share = 1.0 if initials in terms else matched / max(len(words), 1)
    return 1 + _TITLE_SHARE_BONUS * share
