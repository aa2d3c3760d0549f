"""Searches an embedded index: a file of SQLite, made by `python -m orchestrator.index`."""

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
from urllib.parse import quote

from orchestrator.index.schema import MAX_PASSAGES, SCHEMA_VERSION
from orchestrator.search.grounding.words import STOP_WORDS
from orchestrator.search.retrieval import Result

NUM_THREADS = 2
MAX_CANDIDATES = 500
"""Passages that are ranked, the best by BM25: a document may have many that match."""

STEPS_BETWEEN_LOOKS = 10_000
"""SQLite steps after which a search looks whether anybody still waits for it; some 0.1 ms."""

# A title that says the word outweighs a text that uses it.
_TITLE_WEIGHT, _HEADING_WEIGHT, _TEXT_WEIGHT = 6.0, 2.0, 1.0

_LEAD_BONUS = 0.25
"""Share by which a document's first passage gains: it says what the thing is."""

_OTHERS_SHARE = 0.2
"""Share of a document's other matching passages in its score: it is about the thing."""

_WORD = re.compile(r"\w+")

_TITLE_SHARE_BONUS = 0.5
"""Share by which a document gains whose title is nothing but the query."""


class IndexUnusable(Exception):
    """The file is missing or is no index of this version; the message says what to do."""


class IndexRetriever:
    """Full-text search by BM25 in a file made by `python -m orchestrator.index`."""

    name = "embedded"

    def __init__(self, path: str | Path) -> None:
        """Opens the index. Raises IndexUnusable."""
        self._uri = f"file:{quote(str(Path(path).absolute()))}?mode=ro"
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        if not Path(path).is_file():
            raise IndexUnusable(f"{path} is missing; make it with python -m orchestrator.index")
        try:
            connection = self._connect()
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == SCHEMA_VERSION:
                connection.execute("SELECT 1 FROM documents, passages LIMIT 0")
        except sqlite3.Error as error:
            raise IndexUnusable(f"{path} is no search index: {error}") from error
        if version != SCHEMA_VERSION:
            raise IndexUnusable(
                f"{path} has version {version}, not {SCHEMA_VERSION}; build it anew"
            )
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="retrieval")

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        abandoned = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._search, query, limit, safe_search, abandoned
            )
        finally:
            # A search that took too long must not go on and hold up those behind it.
            abandoned.set()

    async def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _search(
        self, query: str, limit: int, safe_search: bool, abandoned: threading.Event
    ) -> list[Result]:
        words = query_words(query)
        if not words:
            return []
        connection = self._connect()
        connection.set_progress_handler(abandoned.is_set, STEPS_BETWEEN_LOOKS)
        rows = connection.execute(
            "SELECT passages.rowid, -bm25(passages, ?, ?, ?) AS score, documents.title, "
            "documents.url, passages.text FROM passages "
            f"JOIN documents ON documents.id = passages.rowid / {MAX_PASSAGES} "
            "WHERE passages MATCH ? AND NOT (? AND documents.unsafe) "
            "ORDER BY score DESC LIMIT ?",
            (
                _TITLE_WEIGHT,
                _HEADING_WEIGHT,
                _TEXT_WEIGHT,
                " OR ".join(f'"{word}"' for word in words),
                safe_search,
                MAX_CANDIDATES,
            ),
        )
        return rank([Hit(*row) for row in rows], words)[:limit]

    def _connect(self) -> sqlite3.Connection:
        """This thread's connection: a query that runs must not hold up another one."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._uri, uri=True, check_same_thread=False)
            self._local.connection = connection
            self._connections.append(connection)
        return connection


class Hit(NamedTuple):
    """A passage that matched."""

    rowid: int
    score: float
    title: str
    url: str
    text: str

    @property
    def document(self) -> int:
        """Its document's id."""
        return self.rowid // MAX_PASSAGES

    @property
    def weight(self) -> float:
        """Its score, with the lead passage's bonus."""
        return self.score * (1 + _LEAD_BONUS * (self.rowid % MAX_PASSAGES == 0))


def rank(hits: Sequence[Hit], words: Sequence[str]) -> list[Result]:
    """The passages, best first; one gains if its document has others that match."""
    totals: defaultdict[int, float] = defaultdict(float)
    for hit in hits:
        totals[hit.document] += hit.score
    results = []
    for hit in hits:
        others = totals[hit.document] - hit.score
        score = (hit.weight + _OTHERS_SHARE * others) * _title_gain(hit, words)
        results.append(Result(title=hit.title, url=hit.url, score=score, text=hit.text))
    return sorted(results, key=lambda result: -result.score)


def _title_gain(hit: Hit, words: Sequence[str]) -> float:
    title = [word for word in _WORD.findall(hit.title.lower()) if word not in STOP_WORDS]
    initials = "".join(word[0] for word in title)
    matched = sum(any(word.startswith(asked[:5]) for asked in words) for word in title)
    share = 1.0 if initials in words else matched / max(len(title), 1)
    return 1 + _TITLE_SHARE_BONUS * share


def query_words(query: str) -> list[str]:
    """The words to look for, lower case, each once; stop words only if there is nothing else."""
    words = list(dict.fromkeys(_WORD.findall(query.lower())))
    return [word for word in words if word not in STOP_WORDS] or words
