"""Builds the search index: python -m orchestrator.index DOCS… --out FILE

Indexes Markdown, HTML and text files, and folders of them. Run it again to update the index: it
reads only files that changed, and removes documents whose file is gone. An update is one
transaction, so readers see either the old index or the new one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tqdm import tqdm

from orchestrator.index.documents import SUFFIXES, Document, UnreadableDocument, parse
from orchestrator.index.schema import MAX_PASSAGES, SCHEMA, SCHEMA_VERSION

MAX_BYTES = 16 * 1024 * 1024
"""Maximum size of a document's file."""


class SourceFile(NamedTuple):
    """A document's file, and its name in the index: its path relative to the given folder."""

    path: Path
    name: str


class IndexBuildError(Exception):
    """The index cannot be built; the message contains the reason."""


def find_sources(roots: Sequence[Path]) -> list[SourceFile]:
    """All documents in `roots`, each once. Raises IndexBuildError."""
    sources: dict[str, SourceFile] = {}
    for root in roots:
        for source in _sources_in(root):
            other = sources.setdefault(source.name, source)
            if other.path.resolve() != source.path.resolve():
                raise IndexBuildError(
                    f"{other.path} and {source.path} have the same name {source.name}; "
                    "pass a folder that contains both"
                )
    if not sources:
        raise IndexBuildError(f"no documents found; supported suffixes: {', '.join(SUFFIXES)}")
    return list(sources.values())


def _sources_in(root: Path) -> Iterator[SourceFile]:
    if root.is_file():
        yield SourceFile(root, _name(Path(root.name)))
    elif root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield SourceFile(path, _name(path.relative_to(root)))
    else:
        raise IndexBuildError(f"{root}: no such file or folder")


def _name(path: Path) -> str:
    """The path as text; bytes that are not valid UTF-8 become U+FFFD."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


def indexed_title(title: str) -> str:
    """The title with its initials appended, so that queries such as AI, NLP or TLS match it."""
    initials = "".join(word[0] for word in title.split() if word[0].isalpha())
    return f"{title} {initials}" if 2 <= len(initials) <= 5 else title


class IndexWriter:
    """Writes an index file; only one writer may be open at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. Raises IndexBuildError if it is not an index."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # A new index gets its name when it is complete, so that readers see no part of it.
        self._file = path if path.exists() else path.with_name(f"{path.name}.new")
        if self._file != path:
            self._remove_file()
        self._connection = sqlite3.connect(self._file, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and self._has_tables():
                raise IndexBuildError(f"{path} is another SQLite database, not a search index")
            if version == 0:
                self._connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            elif version != SCHEMA_VERSION:
                raise IndexBuildError(f"{path} has version {version}, not {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise IndexBuildError(f"{path} is not a search index: {error}") from error

    def _has_tables(self) -> bool:
        return bool(self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    def close(self) -> None:
        """Merges the write-ahead log into the file, so that it can be copied as one file.

        A new index without documents is removed.
        """
        [has_documents] = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM documents)"
        ).fetchone()
        self._connection.execute("INSERT INTO passages(passages) VALUES ('optimize')")
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
        """Makes the index match `sources` in one transaction; returns the number of each action."""
        counts: Counter[str] = Counter()
        known = {row[1]: row for row in self._connection.execute("SELECT id, path FROM documents")}
        with self._transaction():
            for source in tqdm(sources, desc="indexing", unit="doc", file=sys.stderr):
                counts[self._update_one(source, base_url)] += 1
            for path in known.keys() - {source.name for source in sources}:
                self._remove(path)
                counts["removed"] += 1
        return counts

    def _update_one(self, source: SourceFile, base_url: str) -> str:
        try:
            return self._read_one(source, base_url)
        except (OSError, UnreadableDocument) as error:
            tqdm.write(f"skipped {source.name}: {error}", file=sys.stderr)
            self._remove(source.name)
            return "skipped"

    def _read_one(self, source: SourceFile, base_url: str) -> str:
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
            "INSERT INTO documents (path, url, title, unsafe, modified_ns, size, sha256) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, url, document.title, document.unsafe, *stamp),
        )
        first = (cursor.lastrowid or 0) * MAX_PASSAGES
        self._connection.executemany(
            "INSERT INTO passages (rowid, title, heading, text) VALUES (?, ?, ?, ?)",
            [
                (first + number, indexed_title(document.title), passage.heading, passage.text)
                for number, passage in enumerate(document.passages[:MAX_PASSAGES])
            ],
        )

    def _remove(self, name: str) -> None:
        row = self._connection.execute(
            "DELETE FROM documents WHERE path = ? RETURNING id", (name,)
        ).fetchone()
        if row:
            first = row[0] * MAX_PASSAGES
            self._connection.execute(
                "DELETE FROM passages WHERE rowid BETWEEN ? AND ?",
                (first, first + MAX_PASSAGES - 1),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, which `--help` documents."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.index",
        description="Builds or updates the search index from Markdown, HTML and text files.",
        epilog="Exit codes: 0, all files are indexed; 1, the index could not be built; 2, invalid "
        "arguments; 3, the index is built, but some files were skipped.",
    )
    parser.add_argument(
        "docs", metavar="DOCS", nargs="+", type=Path, help="files and folders to index"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="index file to create or update"
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        default="",
        help="prefix of each document's URL; the document's relative path is appended",
    )
    arguments = parser.parse_args(argv)
    try:
        sources = find_sources(arguments.docs)
        with closing(IndexWriter(arguments.out)) as index:
            counts = index.update(sources, arguments.base_url)
    except (IndexBuildError, OSError, sqlite3.Error) as error:
        print(f"cannot build the index: {error}", file=sys.stderr)
        return 1
    actions = ("indexed", "unchanged", "removed", "skipped")
    print(f"{arguments.out}: " + ", ".join(f"{counts[action]} {action}" for action in actions))
    if not (counts["indexed"] or counts["unchanged"]):
        return 1
    return 3 if counts["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
