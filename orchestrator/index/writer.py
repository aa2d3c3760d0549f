"""Writes the index file: documents, passages, and the terms under which passages are found."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from orchestrator.index.cpu_limit import limited_cpu_time
from orchestrator.index.database import sqlite3
from orchestrator.index.documents import Document, parse
from orchestrator.index.formats import UnreadableDocument
from orchestrator.index.schema import MAX_PASSAGES, SCHEMA, SCHEMA_VERSION
from orchestrator.index.vectors import VectorTable
from orchestrator.index.vocabulary import WordTable
from orchestrator.search.language.terms import index_terms

MAX_BYTES = 64 * 1024 * 1024
"""Maximum size of a document's file."""


class SourceFile(NamedTuple):
    """A document's file, and its name in the index: its path relative to the given folder."""

    path: Path
    name: str
    folder: Path | None = None
    """The given folder, which a symbolic link must not lead out of; None: links may lead anywhere.
    """

    def check_link(self) -> None:
        """Raises UnreadableDocument for a link to a file outside of the folder."""
        if self.folder is None or not self.path.is_symlink():
            return
        target = self.path.resolve()
        if not target.is_relative_to(self.folder.resolve()):
            raise UnreadableDocument(
                f"is a link out of {self.folder}, to {target}; --follow-links indexes it"
            )


class IndexBuildError(Exception):
    """The index cannot be built; the message contains the reason."""


def indexed_title(title: str) -> str:
    """The title with its initials appended, so that queries such as AI, NLP or TLS match it."""
    initials = "".join(word[0] for word in title.split() if word[0].isalpha())
    return f"{title} {initials}" if 2 <= len(initials) <= 5 else title


class IndexWriter:
    """Writes an index file; only one writer may be open at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file; one of an older version is built anew.

        Raises IndexBuildError if the file is not an index, or of a newer version.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # A new index gets its name when it is complete, so that readers see no part of it.
        self._file = path if _is_current(path) else path.with_name(f"{path.name}.new")
        if self._file != path:
            self._remove_file()
        self._connection = sqlite3.connect(self._file, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            if self._file != path:
                self._connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        except sqlite3.DatabaseError as error:
            raise IndexBuildError(f"{path} is not a search index: {error}") from error
        self.vectors = VectorTable(self._connection)
        self._words = WordTable(self._connection)

    def close(self) -> None:
        """Merges the write-ahead log into the file, so that it can be copied as one file.

        A new index without documents is removed.
        """
        [has_documents] = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM documents)"
        ).fetchone()
        self._connection.execute("INSERT INTO terms(terms) VALUES ('optimize')")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # SQLite refuses this while a reader is connected; the next update then does it.
        with suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()
        if self._file != self._path:
            if has_documents:
                self._file.replace(self._path)
            else:
                self._remove_file()

    def _remove_file(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)

    def update(self, sources: Sequence[SourceFile], base_url: str) -> Counter[str]:
        """Makes the index match `sources` in one transaction; returns the number of each action.

        The vectors of passages that did not change are kept; see `VectorTable`.
        """
        counts: Counter[str] = Counter()
        known = {row[0] for row in self._connection.execute("SELECT path FROM documents")}
        with self._transaction():
            self._words.prepare()
            for source in tqdm(sources, desc="indexing", unit="doc", file=sys.stderr):
                counts[self._update_one(source, base_url)] += 1
            for path in known - {source.name for source in sources}:
                self._remove(path)
                counts["removed"] += 1
            self._words.remove_unused()
            self.vectors.restore()
        return counts

    def _update_one(self, source: SourceFile, base_url: str) -> str:
        try:
            return self._read_one(source, base_url)
        except (OSError, UnreadableDocument, RecursionError, MemoryError) as error:
            # The last two are of parsers; one document must not stop those of all others.
            reason = str(error) or f"cannot be parsed: {type(error).__name__}"
            tqdm.write(f"skipped {source.name}: {reason}", file=sys.stderr)
            self._remove(source.name)
            return "skipped"

    def _read_one(self, source: SourceFile, base_url: str) -> str:
        source.check_link()
        status = source.path.stat()
        row = self._connection.execute(
            "SELECT modified_ns, size, sha256, url FROM documents WHERE path = ?", (source.name,)
        ).fetchone()
        default_url = f"{base_url}{quote(source.name)}"
        if row and (status.st_mtime_ns, status.st_size) == row[:2] and row[3] == default_url:
            return "unchanged"
        if status.st_size > MAX_BYTES:
            raise UnreadableDocument(f"must be at most {MAX_BYTES} bytes, has {status.st_size}")
        content = source.path.read_bytes()
        with limited_cpu_time():
            document = parse(source.path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        url = document.url or default_url
        stamp = (status.st_mtime_ns, status.st_size)
        if row and row[2] == sha256 and row[3] == url:
            self._connection.execute(
                "UPDATE documents SET modified_ns = ?, size = ? WHERE path = ?",
                (*stamp, source.name),
            )
            return "unchanged"
        self._remove(source.name)
        self._add(source.name, url, document, (*stamp, sha256))
        return "indexed"

    def _add(self, name: str, url: str, document: Document, stamp: tuple[int, int, str]) -> None:
        cursor = self._connection.execute(
            "INSERT INTO documents (path, url, title, language, unsafe, modified_ns, size, sha256) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (name, url, document.title, document.language, document.unsafe, *stamp),
        )
        first = (cursor.lastrowid or 0) * MAX_PASSAGES
        passages = document.passages[:MAX_PASSAGES]
        self._connection.executemany(
            "INSERT INTO passages (id, heading, text) VALUES (?, ?, ?)",
            [(first + n, passage.heading, passage.text) for n, passage in enumerate(passages)],
        )
        rows = [(first + n, passage.heading, passage.text) for n, passage in enumerate(passages)]
        self._connection.executemany(
            "INSERT INTO terms (rowid, title, heading, text) VALUES (?, ?, ?, ?)",
            _term_rows(rows, document.title, document.language),
        )
        self._words.count(f"{document.title} {text}" for _, _, text in rows)

    def _remove(self, name: str) -> None:
        row = self._connection.execute(
            "SELECT id, title, language FROM documents WHERE path = ?", (name,)
        ).fetchone()
        if not row:
            return
        document_id, title, language = row
        first = document_id * MAX_PASSAGES
        ids = (first, first + MAX_PASSAGES - 1)
        self.vectors.remove(*ids)
        rows = self._connection.execute(
            "SELECT id, heading, text FROM passages WHERE id BETWEEN ? AND ?", ids
        ).fetchall()
        # The table has no content, so that the terms to remove are passed once more.
        self._connection.executemany(
            "INSERT INTO terms (terms, rowid, title, heading, text) VALUES ('delete', ?, ?, ?, ?)",
            _term_rows(rows, title, language),
        )
        self._words.count((f"{title} {text}" for _, _, text in rows), step=-1)
        self._connection.execute("DELETE FROM passages WHERE id BETWEEN ? AND ?", ids)
        self._connection.execute("DELETE FROM documents WHERE id = ?", (document_id,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _term_rows(
    passages: Sequence[tuple[int, str, str]], title: str, language: str
) -> Iterator[tuple[int, str, str, str]]:
    """The id of each passage, and its terms: of the document's title, of its heading and text."""
    title_terms = " ".join(index_terms(indexed_title(title), language))
    for passage_id, heading, text in passages:
        terms = (" ".join(index_terms(each, language)) for each in (heading, text))
        yield (passage_id, title_terms, *terms)  # type: ignore[misc]


def _is_current(path: Path) -> bool:
    """Whether the file is an index of this version. Raises IndexBuildError if it is no index."""
    if not path.exists():
        return False
    try:
        connection = sqlite3.connect(path)
        try:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            [num_tables] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            is_index = bool(version) and _has_documents_table(connection)
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise IndexBuildError(f"{path} is not a search index: {error}") from error
    if num_tables and not is_index:
        raise IndexBuildError(f"{path} is another SQLite database, not a search index")
    if version > SCHEMA_VERSION:
        raise IndexBuildError(
            f"{path} has version {version}, newer than {SCHEMA_VERSION}; "
            "update this program, or delete the file to build it anew"
        )
    if version and version < SCHEMA_VERSION:
        print(f"{path} has version {version}, not {SCHEMA_VERSION}: rebuilding it", file=sys.stderr)
    return bool(version == SCHEMA_VERSION)


def _has_documents_table(connection: sqlite3.Connection) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'documents'").fetchone()
    return found is not None
