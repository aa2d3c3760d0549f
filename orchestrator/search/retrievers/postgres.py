"""Full-text search in PostgreSQL, in a table of documents like the one that `SCHEMA` creates."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import asyncpg

from orchestrator.index.vectors import EmbeddingModel
from orchestrator.search.language.languages import is_stop_word
from orchestrator.search.language.words import is_ideograph, tokens
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.passages import MAX_CHARACTERS, rank_passages

MAX_CONNECTIONS = 4

FUNCTIONS = r"""
-- Equal for spellings that differ in case, width or diacritics.
CREATE OR REPLACE FUNCTION weir_fold(text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT normalize(regexp_replace(
        normalize(lower(normalize($1, NFKC)), NFD), '[\u0300-\u036f\u064b-\u065f\u0640]', '', 'g'
    ), NFC)
$$;

-- Single characters and pairs of scripts without spaces between words and of Hangul, and emoji.
CREATE OR REPLACE FUNCTION weir_characters(text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(array_to_tsvector(array_agg(DISTINCT term)), ''::tsvector)
    FROM regexp_matches($1,
        '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]+'
        || '|[\u2600-\u27bf\U0001f300-\U0001faff]', 'g') AS run,
    generate_series(1, length(run[1])) AS place,
    LATERAL (VALUES (substr(run[1], place, 1)), (substr(run[1], place, 2))) AS each(term)
$$;

CREATE OR REPLACE FUNCTION weir_vector(language regconfig, title text, content text)
RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT setweight(to_tsvector(language, weir_fold(title)), 'A')
        || setweight(weir_characters(weir_fold(title)), 'A')
        || setweight(to_tsvector(language, weir_fold(content)), 'D')
        || setweight(weir_characters(weir_fold(content)), 'D')
$$;
"""
"""Functions that make the column `vector` for text in any script."""

SCHEMA = f"""
{FUNCTIONS}
CREATE TABLE IF NOT EXISTS documents (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    title text NOT NULL,
    url text NOT NULL DEFAULT '',
    text text NOT NULL,
    unsafe boolean NOT NULL DEFAULT false,
    language regconfig NOT NULL DEFAULT 'english',
    vector tsvector GENERATED ALWAYS AS (weir_vector(language, title, text)) STORED
);
CREATE INDEX IF NOT EXISTS documents_vector ON documents USING gin (vector);
"""
"""Creates the default table. A custom table may differ in its name and in its vector."""

# Normalization 1 divides the rank by 1 + log(length), so that long documents have no advantage.
_SEARCH = """
SELECT title, url, left(text, $4) AS text, ts_rank(vector, query, 1) AS score
FROM {table}, (SELECT {words} || $1::text::tsquery AS query) AS queries
WHERE vector @@ query AND NOT ($2 AND unsafe)
ORDER BY score DESC
LIMIT $3
"""

# The inner query is one that an HNSW or IVFFlat index answers.
_NEAREST = """
SELECT title, url, left(text, $3) AS text, 1 - ({column} <=> $1::text::{type}) AS score
FROM {table} WHERE {column} IS NOT NULL {safe}
ORDER BY {column} <=> $1::text::{type}
LIMIT $2
"""


class PostgresRetriever:
    """Searches one table with PostgreSQL's `ts_rank`, and its vectors with pgvector."""

    name = "postgresql"

    def __init__(
        self,
        url: str,
        table: str,
        language: str,
        timeout_seconds: float,
        embedding: str = "",
    ) -> None:
        """Opens no connection. `table` is a table's name, optionally qualified by its schema.

        `language` is a text search configuration, or several separated by commas; `embedding` a
        column of pgvector's type `vector`, "" if there is none.
        """
        self._table = quoted(table)
        self._languages = [each.strip() for each in language.split(",")]
        words = " || ".join(
            f"websearch_to_tsquery(${5 + 2 * n}::regconfig, ${6 + 2 * n})"
            for n in range(len(self._languages))
        )
        self._search = _SEARCH.format(table=self._table, words=words)
        self._embedding = embedding
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
        words, characters = _split_query(query)
        if not words and not characters:
            return []
        # Quoted words joined by "or": no user input is parsed as query syntax.
        searched = " or ".join(f'"{word}"' for word in words)
        arguments = [each for language in self._languages for each in (language, searched)]
        lexemes = " | ".join(map(_lexeme, characters))
        rows = await self._fetch(
            self._search, lexemes, safe_search, limit, MAX_CHARACTERS, *arguments
        )
        return await rank_passages([*map(_result, rows)], query, limit)

    async def embedding_model(self) -> EmbeddingModel | None:
        """The column's dimensions; its encoder's name is not stored, so any name is accepted."""
        if not self._embedding:
            return None
        rows = await self._fetch(
            "SELECT atttypmod FROM pg_attribute WHERE attrelid = $1::text::regclass "
            "AND attname = $2 AND NOT attisdropped",
            self._table,
            self._embedding,
        )
        return EmbeddingModel("", max(int(str(rows[0]["atttypmod"])), 0)) if rows else None

    async def search_vectors(
        self, query: str, vector: Sequence[float], limit: int, safe_search: bool
    ) -> list[SearchResult]:
        sql = _NEAREST.format(
            table=self._table,
            column=quoted(self._embedding),
            type="vector",
            safe="AND NOT unsafe" if safe_search else "",
        )
        text = f"[{','.join(map(repr, vector))}]"
        rows = await self._fetch(sql, text, limit, MAX_CHARACTERS)
        return await rank_passages([*map(_result, rows)], query, limit, per_document=2)

    async def close(self) -> None:
        # close() would wait for running queries.
        self._pool.terminate()

    async def _fetch(self, sql: str, *arguments: object) -> list[Mapping[str, object]]:
        async with self._open_lock:
            await self._pool  # opens the pool; asyncpg forbids to do so concurrently
        rows: list[Mapping[str, object]] = await self._pool.fetch(sql, *arguments)
        return rows


def _split_query(query: str) -> tuple[list[str], list[str]]:
    """The words for the database's parser, and the literal lexemes: characters, pairs, emoji."""
    words: dict[str, bool] = {}
    lexemes: dict[str, None] = {}
    for token in tokens(query):
        if token.kind == "word":
            words[token.text] = is_stop_word(token.text, ("en",))
        elif token.kind == "unspaced":
            # By code points, as the function weir_characters splits them.
            pairs = ["".join(pair) for pair in pairwise(token.text)]
            single = filter(is_ideograph, token.text)
            lexemes.update(dict.fromkeys([*single, *pairs] if pairs else [token.text]))
        elif token.kind == "emoji":
            lexemes[token.text] = None
    content = [word for word, is_stop in words.items() if not is_stop]
    return content or ([] if lexemes else list(words)), list(lexemes)


def _lexeme(text: str) -> str:
    """A lexeme in the syntax of the type `tsquery`."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


def _result(row: Mapping[str, object]) -> SearchResult:
    return SearchResult(
        title=str(row["title"] or ""),
        url=str(row["url"] or ""),
        score=float(str(row["score"])),
        text=str(row["text"] or ""),
    )


def quoted(table: str) -> str:
    """A name as SQL identifiers, split at periods."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))
