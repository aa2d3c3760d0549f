"""Full-text search in PostgreSQL: a table of documents, made as `SCHEMA` says."""

from __future__ import annotations

import asyncio

import asyncpg

from orchestrator.search.grounding.words import STOP_WORDS, words_of
from orchestrator.search.retrieval import Result
from orchestrator.search.retrievers.cutting import passages, query_stems

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
"""Another table may have another name, and another language in its vector."""

# 1: divided by 1 + the logarithm of the length, so that long documents have no advantage.
_SEARCH = """
SELECT title, url, text, ts_rank(vector, query, 1) AS score
FROM {table}, websearch_to_tsquery($1::regconfig, $2) AS query
WHERE vector @@ query AND NOT ($3 AND unsafe)
ORDER BY score DESC
LIMIT $4
"""


class PostgresRetriever:
    """Searches one table with PostgreSQL's own ranking."""

    name = "postgresql"

    def __init__(self, url: str, table: str, language: str, timeout_seconds: float) -> None:
        """Connects to nothing yet; `table` must be a name, with a schema or without."""
        self._search = _SEARCH.format(table=_quoted(table))
        self._language = language
        self._opening = asyncio.Lock()
        # Nothing is open until it is needed: the database may start after this service.
        self._pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=timeout_seconds,
            command_timeout=timeout_seconds,
        )

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        if not query_stems(query):
            return []
        # Words only: nothing that a person types is syntax, and any of them may match.
        words = [word for word in words_of(query) if word not in STOP_WORDS] or words_of(query)
        terms = " or ".join(f'"{word}"' for word in words)
        async with self._opening:
            await self._pool  # opens it, once; it must not be asked twice at a time
        rows = await self._pool.fetch(self._search, self._language, terms, safe_search, limit)
        documents = [Result(row["title"], row["url"], row["score"], row["text"]) for row in rows]
        return passages(documents, query, limit)

    async def close(self) -> None:
        # Not close(), which waits for what still runs.
        self._pool.terminate()


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
