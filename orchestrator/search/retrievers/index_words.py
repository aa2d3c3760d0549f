"""What a query searches in the full-text index: its terms, and which passages are ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.index.database import sqlite3
from orchestrator.search.language.spelling import max_errors, nearest
from orchestrator.search.language.terms import query_groups, query_terms
from orchestrator.search.retrievers.index_file import OpenIndex

MAX_CORRECTED = 8
"""Words of a query that are corrected; each takes a scan of the words with the same letter."""

MIN_RANKED = 200
"""Passages that are ranked, at least, if so many have one of the terms."""

COMMON_SHARE = 0.1
"""Share of the passages that have a common term, in a large index."""

LARGE_INDEX = 10_000
"""Passages of an index that is large."""

_OCCURS = "SELECT 1 FROM terms WHERE terms MATCH ? LIMIT 1"

_SIMILAR = """
SELECT word, passages FROM words
WHERE word >= ? AND word < ? AND length(word) BETWEEN ? AND ?
"""

_VOCABULARY = "CREATE VIRTUAL TABLE IF NOT EXISTS temp.vocabulary USING fts5vocab(main, terms, row)"
"""Made for a connection, not stored."""

_COUNT = "SELECT doc FROM temp.vocabulary WHERE term = ?"


class SearchedTerms(NamedTuple):
    """What a query searches."""

    terms: Sequence[str]
    """Distinct."""
    corrections: Mapping[str, str]
    """The words of the query that are not in the index, each with the nearest one that is."""


def searched_terms(query: str, index: OpenIndex) -> SearchedTerms:
    """The terms of a query; a word that is not in the index adds those of its nearest."""
    terms: dict[str, None] = {}
    corrections: dict[str, str] = {}
    num_corrected = 0
    for group in query_groups(query, index.languages):
        terms |= dict.fromkeys(group)
        is_long = index.has_words and max(map(max_errors, group)) > 0
        if not is_long or num_corrected == MAX_CORRECTED:
            continue
        if index.connection.execute(_OCCURS, (any_of(group),)).fetchone() is None:
            num_corrected += 1
            word = _nearest_word(group[0], index.connection)
            if word:
                corrections[group[0]] = word
                terms |= dict.fromkeys(query_terms(word, index.languages))
    return SearchedTerms(list(terms), corrections)


def expression(terms: Sequence[str], index: OpenIndex) -> str:
    """The FTS5 expression of the passages to rank: those with any of the terms.

    In a large index a passage with common terms alone is not ranked, if enough passages have rarer
    ones: the time of a search is that of the passages that are ranked.
    """
    everything = any_of(terms)
    if index.num_passages <= LARGE_INDEX:
        return everything
    index.connection.execute(_VOCABULARY)
    rows = ((each, index.connection.execute(_COUNT, (each,)).fetchone()) for each in terms)
    counts = {term: row[0] for term, row in rows if row is not None}
    rare: list[str] = []
    for term in sorted(counts, key=lambda each: counts[each]):
        is_enough = bool(rare) and counts[rare[-1]] >= MIN_RANKED
        if is_enough and counts[term] > COMMON_SHARE * index.num_passages:
            break
        rare.append(term)
    return everything if len(rare) == len(counts) else f"({everything}) AND ({any_of(rare)})"


def any_of(terms: Iterable[str]) -> str:
    """The FTS5 expression that matches any of the terms."""
    quoted = (term.replace('"', '""') for term in terms)
    return " OR ".join(f'"{term}"' for term in quoted)


def _nearest_word(word: str, connection: sqlite3.Connection) -> str | None:
    first, length, most = word[:1], len(word), max_errors(word)
    # Read one by one: a cancelled query is interrupted by the connection between two rows.
    rows = connection.execute(_SIMILAR, (first, first + "\U0010ffff", length - most, length + most))
    return nearest(word, rows)
