"""The words of an index's passages, by which misspelled words of queries are corrected.

The full-text index has stems only, which a misspelled word need not be near.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from orchestrator.index.database import sqlite3
from orchestrator.index.schema import MAX_PASSAGES, WORDS
from orchestrator.search.language.spelling import max_errors
from orchestrator.search.language.words import split_words

MAX_CHARACTERS = 40
"""Longer words are identifiers, which are copied and not typed."""


class WordTable:
    """The table of words in an index that is being written, with the number of their passages."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def prepare(self) -> None:
        """Creates the table in an index that was made without it, from its passages."""
        if has_words(self._connection):
            return
        self._connection.execute(WORDS)
        self.count(
            f"{title} {text}"
            for title, text in self._connection.execute(
                "SELECT documents.title, passages.text FROM passages "
                f"JOIN documents ON documents.id = passages.id / {MAX_PASSAGES}"
            )
        )

    def count(self, texts: Iterable[str], step: int = 1) -> None:
        """Adds the words of passages; subtracts them if `step` is -1."""
        counts = Counter[str]()
        for text in texts:
            counts.update(set(filter(_is_kept, split_words(text))))
        self._connection.executemany(
            "INSERT INTO words VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET passages = passages + excluded.passages",
            [(word, step * number) for word, number in counts.items()],
        )

    def remove_unused(self) -> None:
        """Removes the words that no passage has any more; reads the whole table."""
        self._connection.execute("DELETE FROM words WHERE passages <= 0")


def has_words(connection: sqlite3.Connection) -> bool:
    """Whether the index has the table."""
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'words'").fetchone()
    return found is not None


def _is_kept(word: str) -> bool:
    return max_errors(word) > 0 and len(word) <= MAX_CHARACTERS
