"""Builds the search index: python -m orchestrator.index DOCS… --out FILE

Reads Markdown, HTML and text files, and folders of them. Run it again after documents have
changed: only what changed is read, and what is gone is removed. Readers see the old index or the
new one, never half of one.
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


class Source(NamedTuple):
    """A file, and the name under which it is known: its path below the folder that was given."""

    path: Path
    name: str


class IndexBuildError(Exception):
    """Nothing can be built; the message says why."""


def find_sources(roots: Sequence[Path]) -> list[Source]:
    """All files below `roots` that can be read, by name. Raises IndexBuildError."""
    sources: dict[str, Source] = {}
    for root in roots:
        for source in _below(root):
            other = sources.setdefault(source.name, source)
            if other.path.resolve() != source.path.resolve():
                raise IndexBuildError(
                    f"{other.path} and {source.path} are both known as {source.name}; "
                    "give the folder that holds both"
                )
    if not sources:
        raise IndexBuildError(f"no documents found; they end in {', '.join(SUFFIXES)}")
    return list(sources.values())


def _below(root: Path) -> Iterator[Source]:
    if root.is_file():
        yield Source(root, _name(Path(root.name)))
    elif root.is_dir():
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield Source(path, _name(path.relative_to(root)))
    else:
        raise IndexBuildError(f"{root}: no such file or folder")


def _name(path: Path) -> str:
    """The path as text; bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


def searched_title(title: str) -> str:
    """The title as it is searched: with its initials, for people ask for AI, NLP and TLS."""
    initials = "".join(word[0] for word in title.split() if word[0].isalpha())
    return f"{title} {initials}" if 2 <= len(initials) <= 5 else title


class Index:
    """An index that is being written. One writer at a time."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises IndexBuildError if it is something else."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and self._has_tables():
                raise IndexBuildError(f"{path}: is another database, not a search index")
            if version == 0:
                self._connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            elif version != SCHEMA_VERSION:
                raise IndexBuildError(f"{path}: has version {version}, not {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise IndexBuildError(f"{path}: is no search index ({error})") from error

    def _has_tables(self) -> bool:
        return bool(self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    def close(self) -> None:
        """Folds the log into the file, so that it can be copied and opened read-only."""
        self._connection.execute("INSERT INTO passages(passages) VALUES ('optimize')")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Refused while somebody has it open; then the next update does it.
        with suppress(sqlite3.OperationalError):
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def update(self, sources: Sequence[Source], base_url: str) -> Counter[str]:
        """Brings the index to the state of `sources`; counts what was done, in one transaction."""
        done: Counter[str] = Counter()
        known = {row[1]: row for row in self._connection.execute("SELECT id, path FROM documents")}
        with self._transaction():
            for source in tqdm(sources, desc="indexing", unit="doc", file=sys.stderr):
                done[self._update_one(source, base_url)] += 1
            for path in known.keys() - {source.name for source in sources}:
                self._remove(path)
                done["removed"] += 1
        return done

    def _update_one(self, source: Source, base_url: str) -> str:
        try:
            return self._read_one(source, base_url)
        except (OSError, UnreadableDocument) as error:
            tqdm.write(f"skipped {source.name}: {error}", file=sys.stderr)
            self._remove(source.name)
            return "skipped"

    def _read_one(self, source: Source, base_url: str) -> str:
        status = source.path.stat()
        row = self._connection.execute(
            "SELECT modified_ns, size, sha256, url FROM documents WHERE path = ?", (source.name,)
        ).fetchone()
        default_url = f"{base_url}{quote(source.name)}"
        if row and (status.st_mtime_ns, status.st_size) == row[:2] and row[3] == default_url:
            return "unchanged"
        if status.st_size > MAX_BYTES:
            raise UnreadableDocument(f"has {status.st_size} bytes, the limit is {MAX_BYTES}")
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
                (first + number, searched_title(document.title), passage.heading, passage.text)
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
    """The command line; gives the exit code, which the help explains."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.index",
        description="Builds or updates the search index from Markdown, HTML and text files.",
        epilog="Exit code: 0, all is indexed; 1, the index could not be built; 2, bad arguments; "
        "3, built, but some files were skipped.",
    )
    parser.add_argument("docs", metavar="DOCS", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the index")
    parser.add_argument(
        "--base-url", metavar="URL", default="", help="put before the path of each document"
    )
    arguments = parser.parse_args(argv)
    try:
        sources = find_sources(arguments.docs)
        with closing(Index(arguments.out)) as index:
            done = index.update(sources, arguments.base_url)
    except (IndexBuildError, OSError, sqlite3.Error) as error:
        print(f"cannot build the index: {error}", file=sys.stderr)
        return 1
    words = ("indexed", "unchanged", "removed", "skipped")
    print(f"{arguments.out}: " + ", ".join(f"{done[word]} {word}" for word in words))
    if not (done["indexed"] or done["unchanged"]):
        return 1
    return 3 if done["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
