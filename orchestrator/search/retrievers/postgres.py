"""Full-text search in PostgreSQL, in a table of documents like the one that `SCHEMA` creates."""

from __future__ import annotations

import asyncio

import asyncpg

from orchestrator.search.grounding.stemming import STOP_WORDS, split_words
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.passages import (
    MAX_CHARACTERS,
    query_stems,
    rank_passages,
)

MAX_CONNECTIONS = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS documents (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title text NOT NULL,
    url text NOT NULL DEFAULT '',
    text text NOT NULL,
    unsafe boolean NOT NULL DEFAULT false,
    vector tsvector GENERATED ALWAYS AS (
        setweight(to_tsvector('english', title), 'A')
        || setweight(to_tsvector('english', text), 'D')
    ) STORED
);
CREATE INDEX IF NOT EXISTS documents_vector ON documents USING gin (vector);
"""
"""Creates the default table. A custom table may differ in its name and in the vector's language."""

# Normalization 1 divides the rank by 1 + log(length), so that long documents have no advantage.
_SEARCH = """
SELECT title, url, left(text, $5) AS text, ts_rank(vector, query, 1) AS score
FROM {table}, websearch_to_tsquery($1::regconfig, $2) AS query
WHERE vector @@ query AND NOT ($3 AND unsafe)
ORDER BY score DESC
LIMIT $4
"""


class PostgresRetriever:
    """Searches one table with PostgreSQL's `ts_rank`."""

    name = "postgresql"

    def __init__(self, url: str, table: str, language: str, timeout_seconds: float) -> None:
        """Opens no connection. `table` is a table's name, optionally qualified by its schema."""
        self._search = _SEARCH.format(table=_quoted(table))
        self._language = language
        self._open_lock = asyncio.Lock()
        # Connections are opened on first use: the database may start after this service.
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
        )

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        if not query_stems(query):
            return []
        # Quoted words joined by "or": no user input is parsed as query syntax.
        all_words = split_words(query)
        words = [word for word in all_words if word not in STOP_WORDS] or all_words
        terms = " or ".join(f'"{word}"' for word in words)
        async with self._open_lock:
            await self._pool  # opens the pool; asyncpg forbids to do so concurrently
        rows = await self._pool.fetch(
            self._search, self._language, terms, safe_search, limit, MAX_CHARACTERS
        )
        documents = [
            SearchResult(row["title"], row["url"], row["score"], row["text"]) for row in rows
        ]
        return await rank_passages(documents, query, limit)

    async def close(self) -> None:
        # close() would wait for running queries.
        self._pool.terminate()


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
