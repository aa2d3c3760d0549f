"""Searches the embedded index: an SQLite file built by `python -m orchestrator.index`."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from orchestrator.index.schema import MAX_PASSAGES
from orchestrator.search.grounding.stemming import STOP_WORDS
from orchestrator.search.retrieval import (
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    SearchResult,
)
from orchestrator.search.retrievers.index_file import IndexConnection

NUM_THREADS = 2
MAX_CANDIDATES = 500
"""Number of best BM25 matches that are ranked; a document may have many matching passages."""

PROGRESS_HANDLER_STEPS = 10_000
"""SQLite instructions between two checks for cancellation; about 0.1 ms."""

# A match in the title counts more than one in the text.
_TITLE_WEIGHT, _HEADING_WEIGHT, _TEXT_WEIGHT = 6.0, 2.0, 1.0

_LEAD_BONUS = 0.25
"""Relative bonus of a document's first passage, which usually defines its subject."""

_OTHERS_SHARE = 0.2
"""Weight of the other matching passages of the same document in a passage's score."""

_WORD = re.compile(r"\w+")

_TITLE_SHARE_BONUS = 0.5
"""Relative bonus of a document whose title matches completely."""


class IndexRetriever:
    """Full-text search by BM25 (SQLite FTS5), in a small thread pool."""

    name = "embedded"

    def __init__(self, path: str | Path) -> None:
        """Opens the index. Raises IndexUnusable."""
        self._connections = [IndexConnection(Path(path)) for _ in range(NUM_THREADS)]
        self._free = self._connections.copy()
        """As many as threads, so that each search finds one; `pop` and `append` are atomic."""
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="retrieval")

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        cancelled = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._search, query, limit, safe_search, cancelled
            )
        finally:
            # An abandoned query must not occupy a thread that later queries need.
            cancelled.set()

    async def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _search(
        self, query: str, limit: int, safe_search: bool, cancelled: threading.Event
    ) -> list[SearchResult]:
        words = query_words(query)
        if not words:
            return []
        index = self._free.pop()
        try:
            try:
                hits = _find(index.current(), words, safe_search, cancelled)
            except sqlite3.Error:
                if cancelled.is_set():
                    raise
                # The file may have been overwritten since it was opened.
                hits = _find(index.reopen(), words, safe_search, cancelled)
        finally:
            self._free.append(index)
        return rank_hits(hits, words)[:limit]


def _find(
    connection: sqlite3.Connection,
    words: Sequence[str],
    safe_search: bool,
    cancelled: threading.Event,
) -> list[Hit]:
    """The best matches; raises sqlite3.OperationalError soon after `cancelled` is set."""
    connection.set_progress_handler(cancelled.is_set, PROGRESS_HANDLER_STEPS)
    rows = connection.execute(
        "SELECT passages.rowid, -bm25(passages, ?, ?, ?) AS score, "
        "substr(documents.title, 1, ?), documents.url, substr(passages.text, 1, ?) FROM passages "
        f"JOIN documents ON documents.id = passages.rowid / {MAX_PASSAGES} "
        "WHERE passages MATCH ? AND NOT (? AND documents.unsafe) "
        "ORDER BY score DESC LIMIT ?",
        (
            _TITLE_WEIGHT,
            _HEADING_WEIGHT,
            _TEXT_WEIGHT,
            MAX_TITLE_CHARACTERS,
            MAX_TEXT_CHARACTERS,
            " OR ".join(f'"{word}"' for word in words),
            safe_search,
            MAX_CANDIDATES,
        ),
    )
    return [Hit(*row) for row in rows]


class Hit(NamedTuple):
    """A passage that matches the query, with its BM25 score."""

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


def rank_hits(hits: Sequence[Hit], words: Sequence[str]) -> list[SearchResult]:
    """Ranks passages, best first; other matches in the same document raise a passage's score."""
    totals: defaultdict[int, float] = defaultdict(float)
    for hit in hits:
        totals[hit.document] += hit.score
    results = []
    for hit in hits:
        others = totals[hit.document] - hit.score
        score = (hit.weight + _OTHERS_SHARE * others) * _title_factor(hit, words)
        results.append(SearchResult(title=hit.title, url=hit.url, score=score, text=hit.text))
    return sorted(results, key=lambda result: -result.score)


def _title_factor(hit: Hit, words: Sequence[str]) -> float:
    title = [word for word in _WORD.findall(hit.title.lower()) if word not in STOP_WORDS]
    initials = "".join(word[0] for word in title)
    matched = sum(any(word.startswith(queried[:5]) for queried in words) for word in title)
    share = 1.0 if initials in words else matched / max(len(title), 1)
    return 1 + _TITLE_SHARE_BONUS * share


def query_words(query: str) -> list[str]:
    """The query's distinct words, lower case; stop words only if there are no others."""
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    return [word for word in words if word not in STOP_WORDS] or words
