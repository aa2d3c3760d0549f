"""Finds documents for a query. What finds them is a `Retriever`; here, an embedded index."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

from orchestrator.index_schema import MAX_PASSAGES, SCHEMA_VERSION

NUM_THREADS = 2
MAX_CANDIDATES = 500
"""Passages that are ranked, the best by BM25: a document may have many that match."""

STEPS_BETWEEN_LOOKS = 10_000
"""SQLite steps after which a search looks whether anybody still waits for it; some 0.1 ms."""

SNIPPET_CHARACTERS = 220

# A title that says the word outweighs a text that uses it.
_TITLE_WEIGHT, _HEADING_WEIGHT, _TEXT_WEIGHT = 6.0, 2.0, 1.0

_LEAD_BONUS = 0.25
"""Share by which a document's first passage gains: it says what the thing is."""

_OTHERS_SHARE = 0.2
"""Share of a document's other matching passages in its score: it is about the thing."""

_WORD = re.compile(r"\w+")

_TITLE_SHARE_BONUS = 0.5
"""Share by which a document gains whose title is nothing but the query."""

STOP_WORDS = frozenset(
    (
        "a about an and are as at be by can do does explain for from give has have how i in into "
        "is it me mean means of on or please tell that the their there these this to us was what "
        "when where which who why will with work works you your"
    ).split()
)


class Result(NamedTuple):
    """A document that was found."""

    title: str
    url: str
    snippet: str
    """Plain text around the match."""
    score: float
    """Higher is better; comparable within one answer."""
    text: str
    """The passage for the prompt, whole sentences."""


class Retriever(Protocol):
    """Something that can be searched."""

    async def search(self, query: str, num_results: int, safe_search: bool) -> list[Result]:
        """At most `num_results` documents, best first. Raises whatever may go wrong."""
        ...

    async def close(self) -> None:
        """Lets go of files and threads."""
        ...


class NoRetriever:
    """Finds nothing: for a service without documents."""

    async def search(self, query: str, num_results: int, safe_search: bool) -> list[Result]:
        return []

    async def close(self) -> None:
        return None


class IndexUnusable(Exception):
    """The file is missing or is no index of this version; the message says what to do."""


class IndexRetriever:
    """Full-text search by BM25 in a file made by `python -m orchestrator.index`."""

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

    async def search(self, query: str, num_results: int, safe_search: bool) -> list[Result]:
        abandoned = threading.Event()
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._search, query, num_results, safe_search, abandoned
            )
        finally:
            # A search that took too long must not go on and hold up those behind it.
            abandoned.set()

    async def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for connection in self._connections:
            connection.close()

    def _search(
        self, query: str, num_results: int, safe_search: bool, abandoned: threading.Event
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
        return rank([Hit(*row) for row in rows], words)[:num_results]

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
    """One result a document, best first."""
    documents: dict[int, list[Hit]] = {}
    for hit in hits:
        documents.setdefault(hit.document, []).append(hit)
    results = []
    for found in documents.values():
        best = max(found, key=lambda hit: hit.weight)
        others = sum(hit.score for hit in found if hit is not best)
        results.append(
            Result(
                title=best.title,
                url=best.url,
                snippet=snippet(best.text, words),
                score=(best.weight + _OTHERS_SHARE * others) * _title_gain(best, words),
                text=best.text,
            )
        )
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


def snippet(text: str, words: Sequence[str]) -> str:
    """About `SNIPPET_CHARACTERS` of `text`, from its beginning or so that the first match shows."""
    found = re.search(rf"\b(?:{'|'.join(map(re.escape, words))})", text, re.IGNORECASE)
    begin = 0
    if words and found and found.start() > SNIPPET_CHARACTERS * 3 // 4:
        ends = (text.rfind(end, 0, found.start()) for end in (". ", "! ", "? "))
        begin = max(ends) + 2
        if begin < 2 or found.start() - begin > SNIPPET_CHARACTERS // 2:
            # No sentence begins near: some words before the match do.
            begin = text.rfind(" ", 0, found.start() - SNIPPET_CHARACTERS // 4) + 1
    piece = text[begin : begin + SNIPPET_CHARACTERS]
    if begin + SNIPPET_CHARACTERS < len(text):
        piece = piece[: piece.rfind(" ")].rstrip(" ,;:") + " …"
    return piece
