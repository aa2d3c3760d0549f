"""Connections to the search index file, reopened when the file is replaced."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from orchestrator.index.database import load_vectors, sqlite3
from orchestrator.index.schema import SCHEMA_VERSION
from orchestrator.index.vectors import EmbeddingModel, embedding_model
from orchestrator.index.vocabulary import has_words

logger = logging.getLogger(__name__)


class IndexUnusable(Exception):
    """The index file is missing, invalid or of another version; the message says how to fix it."""


class FileVersion(NamedTuple):
    """Identifies the content of a path: another file, or another state of the same file."""

    device: int
    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, path: Path) -> FileVersion | None:
        """The version now; None if there is no such file."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


class OpenIndex(NamedTuple):
    """An open index file, and what does not change as long as it is open."""

    connection: sqlite3.Connection
    languages: frozenset[str]
    """Languages of its documents."""
    embedding: EmbeddingModel | None
    """Encoder of its vectors; None if it has none, or if they cannot be searched here."""
    num_passages: int
    has_words: bool
    """Whether it has the words by which misspelled ones are corrected."""


class IndexConnection:
    """One read-only connection, for one thread at a time.

    It always has a usable index: a new file is opened when the path has one, and as long as it is
    missing, incomplete or invalid, the file that was opened last is kept, even if it is deleted.
    """

    def __init__(self, path: Path) -> None:
        """Raises IndexUnusable."""
        self._path = path
        # Before the file is opened: if it is replaced in between, it is opened once more.
        self._version = FileVersion.of(path)
        self._refused: FileVersion | None = self._version
        self._index = _open(path)

    def current(self) -> OpenIndex:
        """The newest usable file. Blocks for a stat call, or to open the file."""
        version = FileVersion.of(self._path)
        if version != self._version:
            self._replace(version)
        return self._index

    def close(self) -> None:
        """Closes the file."""
        self._index.connection.close()

    def reopen(self) -> OpenIndex:
        """Opens the file again after a failed query. Raises IndexUnusable."""
        version = FileVersion.of(self._path)
        index = _open(self._path)
        self._index.connection.close()
        self._index, self._version = index, version
        return index

    def _replace(self, version: FileVersion | None) -> None:
        try:
            # An update in place is a transaction; another file may be damaged anywhere.
            is_other = version and self._version and version.inode != self._version.inode
            index = _open(self._path, complete=True, check=bool(is_other))
        except IndexUnusable as error:
            if version != self._refused:
                self._refused = version
                logger.warning(
                    "changed index file is unusable, the last one is kept",
                    extra={"path": str(self._path), "error": str(error)},
                )
            return
        self._index.connection.close()
        self._index, self._version, self._refused = index, version, version


def _open(path: Path, *, complete: bool = False, check: bool = False) -> OpenIndex:
    """Raises IndexUnusable; if `complete`, also for a file that is still being written.

    `check` reads the whole file to find damage.
    """
    if not path.is_file():
        raise IndexUnusable(f"{path} is missing; build it with python -m orchestrator.index")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    except sqlite3.Error as error:
        raise IndexUnusable(f"{path} is not a search index: {error}") from error
    try:
        problem = _problem(path, connection, complete)
        if problem is None and check:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
            problem = None if found == "ok" else f"{path} is damaged: {found}"
        if problem is None:
            return _opened(connection)
    except (OSError, sqlite3.Error) as error:
        problem = f"{path} is not a search index: {error}"
    connection.close()
    raise IndexUnusable(problem)


def _opened(connection: sqlite3.Connection) -> OpenIndex:
    rows = connection.execute("SELECT DISTINCT language FROM documents").fetchall()
    [num_passages] = connection.execute("SELECT count(*) FROM passages").fetchone()
    model = embedding_model(connection)
    if model is not None:
        try:
            load_vectors(connection)
        except (ImportError, AttributeError, sqlite3.Error) as error:
            logger.warning(
                "vectors of the index are not searched: sqlite-vec cannot be loaded",
                extra={"error": str(error)},
            )
            model = None
    languages = frozenset(row[0] for row in rows)
    return OpenIndex(connection, languages, model, num_passages, has_words(connection))


def _problem(path: Path, connection: sqlite3.Connection, complete: bool) -> str | None:
    """Why the file is unusable; None if it is usable."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        return (
            f"{path} has version {version}, not {SCHEMA_VERSION}; "
            "rebuild it with python -m orchestrator.index"
        )
    connection.execute("SELECT 1 FROM documents, passages, terms, embedding LIMIT 0")
    if not complete:
        return None
    if connection.execute("SELECT 1 FROM documents LIMIT 1").fetchone() is None:
        return f"{path} has no documents"
    with path.open("rb") as file:
        header = file.read(32)
    # The database header (https://www.sqlite.org/fileformat.html#the_database_header).
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    if int.from_bytes(header[28:32], "big") * page_size > path.stat().st_size:
        return f"{path} is truncated"
    return None
