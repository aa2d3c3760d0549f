"""The vectors of an index's passages: stored in two precisions, and kept while texts are equal.

Each number is stored as its sign (1 bit) and in 8 bits. A search of a large index compares the
signs of all passages, and the 8-bit numbers of the best candidates.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.index.database import sqlite3
from orchestrator.index.schema import MAX_PASSAGES, VECTORS


class EmbeddingModel(NamedTuple):
    """The encoder that made an index's vectors, and the number of their dimensions."""

    name: str
    dimensions: int


class Quantized(NamedTuple):
    """A vector in the index's two precisions."""

    coarse: bytes
    """One bit for each number: whether it is positive; the first is the lowest bit of a byte."""
    fine: bytes
    """One signed byte for each number, scaled so that the largest has magnitude 127."""


class UnembeddedPassage(NamedTuple):
    """A passage without a vector."""

    id: int
    text: str
    """What its vector represents: title, heading and text."""


def quantize(vector: Sequence[float]) -> Quantized:
    """Rounds a vector; its length is lost, which cosine similarity does not depend on.

    Zeros are appended up to a multiple of 8 numbers.
    """
    vector = [*vector, *[0.0] * (-len(vector) % 8)]
    signs = 0
    for index, number in enumerate(vector):
        signs |= (number > 0) << index
    scale = 127 / (max(map(abs, vector), default=0.0) or 1.0)
    fine = array("b", [round(number * scale) for number in vector])
    return Quantized(signs.to_bytes(len(vector) // 8, "little"), fine.tobytes())


def embedded_text(title: str, heading: str, text: str) -> str:
    """The text that represents a passage: its title and heading say what it is about."""
    return "\n".join(dict.fromkeys(each for each in (title, heading, text) if each))


def embedding_model(connection: sqlite3.Connection) -> EmbeddingModel | None:
    """The encoder of the index's vectors; None if it has none."""
    row = connection.execute("SELECT model, dimensions FROM embedding").fetchone()
    return EmbeddingModel(*row) if row else None


_PASSAGES = f"""
SELECT passages.id, documents.title, passages.heading, passages.text
FROM passages JOIN documents ON documents.id = passages.id / {MAX_PASSAGES}
"""


class VectorTable:
    """The table of vectors in an index that is being written.

    Vectors of removed passages are remembered until `restore`, which gives them to passages with
    equal text: those of a renamed document, or the unchanged ones of a changed document.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.model = embedding_model(connection)
        self._removed: dict[bytes, Quantized] = {}

    def use(self, model: EmbeddingModel) -> None:
        """Creates the tables for vectors of `model`, unless they exist."""
        if model == self.model:
            return
        assert self.model is None, "vectors of another encoder must be cleared first"
        self._connection.executescript(f"BEGIN; {VECTORS}")
        self._connection.execute("INSERT INTO embedding VALUES (?, ?)", model)
        self._connection.execute("COMMIT")
        self.model = model

    def clear(self) -> None:
        """Removes all vectors."""
        if self.model is not None:
            self._connection.executescript(
                "BEGIN; DROP TABLE signs; DROP TABLE vectors; DELETE FROM embedding; COMMIT;"
            )
            self.model = None

    def remove(self, first: int, last: int) -> None:
        """Removes the vectors of the passages with ids from `first` to `last`."""
        if self.model is None:
            return
        for row in self._connection.execute(
            f"{_PASSAGES} WHERE passages.id BETWEEN ? AND ?", (first, last)
        ).fetchall():
            stored = self._connection.execute(
                "SELECT coarse, fine FROM signs JOIN vectors USING (id) WHERE id = ?", row[:1]
            ).fetchone()
            if stored:
                self._removed[_digest(embedded_text(*row[1:]))] = Quantized(*stored)
        for table in ("signs", "vectors"):
            self._connection.execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (first, last))

    def restore(self) -> None:
        """Stores the remembered vectors for passages with equal text."""
        if self._removed:
            for passage in self.unembedded():
                if known := self._removed.get(_digest(passage.text)):
                    self._insert(passage.id, known)
        self._removed.clear()

    def unembedded(self) -> list[UnembeddedPassage]:
        """The passages that have no vector."""
        rows = self._connection.execute(_PASSAGES).fetchall()
        known: set[int] = set()
        if self.model is not None:
            known = {row[0] for row in self._connection.execute("SELECT id FROM vectors")}
        return [
            UnembeddedPassage(row[0], embedded_text(*row[1:]))
            for row in rows
            if row[0] not in known
        ]

    def store(
        self, passages: Sequence[UnembeddedPassage], vectors: Sequence[Sequence[float]]
    ) -> None:
        """Stores the vectors of some passages in one transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for passage, vector in zip(passages, vectors, strict=True):
                self._insert(passage.id, quantize(vector))
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _insert(self, passage_id: int, vector: Quantized) -> None:
        [unsafe] = self._connection.execute(
            "SELECT unsafe FROM documents WHERE id = ?", (passage_id // MAX_PASSAGES,)
        ).fetchone()
        self._connection.execute(
            "INSERT INTO signs (id, coarse, unsafe) VALUES (?, ?, ?)",
            (passage_id, vector.coarse, unsafe),
        )
        self._connection.execute(
            "INSERT INTO vectors (id, fine) VALUES (?, ?)", (passage_id, vector.fine)
        )


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
