"""Builds the search index: python -m orchestrator.index DOCS… --out FILE

Indexes Markdown, HTML, text, CSV, PDF and DOCX files, and folders of them. Run it again to update
the index: it reads only files that changed, and removes documents whose file is gone. An update is
one transaction, so readers see either the old index or the new one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from orchestrator.index.database import sqlite3
from orchestrator.index.documents import SUFFIXES
from orchestrator.index.embedding import embed_passages
from orchestrator.index.writer import IndexBuildError, IndexWriter, SourceFile
from orchestrator.search.embedders import HttpEmbedder
from orchestrator.search.retrievers.index_file import FileVersion

EMBEDDING_TIMEOUT_SECONDS = 120.0
"""For one batch."""


def find_sources(roots: Sequence[Path], *, follow_links: bool = False) -> list[SourceFile]:
    """All documents in `roots`, each once. Raises IndexBuildError.

    `follow_links`: links may lead out of a folder, though links to folders are never followed.
    """
    sources: dict[str, SourceFile] = {}
    for root in roots:
        for source in _sources_in(root, follow_links):
            other = sources.setdefault(source.name, source)
            if other.path.resolve() != source.path.resolve():
                raise IndexBuildError(
                    f"{other.path} and {source.path} have the same name {source.name}; "
                    "pass a folder that contains both"
                )
    if not sources:
        raise IndexBuildError(f"no documents found; supported suffixes: {', '.join(SUFFIXES)}")
    return list(sources.values())


def _sources_in(root: Path, follow_links: bool) -> Iterator[SourceFile]:
    if root.is_file():
        yield SourceFile(root, _name(Path(root.name)))
    elif root.is_dir():
        folder = None if follow_links else root
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            # Kubernetes mounts files as links into hidden folders such as `..2026_11_30`.
            if any(part.startswith("..") for part in relative.parts):
                continue
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield SourceFile(path, _name(relative), folder)
    else:
        raise IndexBuildError(f"{root}: no such file or folder")


def _name(path: Path) -> str:
    """The path as text; bytes that are not valid UTF-8 become U+FFFD."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, which `--help` documents."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.index",
        description="Builds or updates the search index from Markdown, HTML, text, CSV, PDF and "
        "DOCX files.",
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
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        help="keep running, and update the index when files change; they are listed every SECONDS",
    )
    parser.add_argument(
        "--follow-links",
        action="store_true",
        help="also index files outside of a folder of DOCS that symbolic links in it lead to; "
        "without it they are skipped",
    )
    add_embedding_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.watch is None:
        return build(arguments)
    try:
        watch(arguments)
    except KeyboardInterrupt:
        return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(f"must be more than 0, given {text}")
    return seconds


def watch(arguments: argparse.Namespace) -> NoReturn:
    """Updates the index whenever a file is added, changed or deleted.

    Files are listed in intervals: notifications of the kernel do not exist for network volumes.
    """
    known: object = None
    while True:
        found = _versions(arguments.docs, arguments.follow_links)
        if found != known:
            # A failed build is repeated: its cause, such as the encoder, is not in the files.
            known = found if build(arguments) != 1 else None
        time.sleep(arguments.watch)


def _versions(roots: Sequence[Path], follow_links: bool) -> list[tuple[str, FileVersion | None]]:
    """The name and the version of each document; empty if there is none."""
    try:
        sources = find_sources(roots, follow_links=follow_links)
    except IndexBuildError:
        return []
    return [(str(source.path), FileVersion.of(source.path)) for source in sources]


def add_embedding_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of an encoder, for the search by vectors."""
    group = parser.add_argument_group(
        "search by vectors", "Without an encoder the index is searched by words only."
    )
    group.add_argument(
        "--embedding-model", metavar="NAME", default="", help="encoder of the passages"
    )
    group.add_argument(
        "--embedding-url",
        metavar="URL",
        default="http://127.0.0.1:8080/v1",
        help="server with OpenAI's /embeddings below this URL, such as Weir's gateway or vLLM "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--embedding-key-file", metavar="FILE", type=Path, help="file with the server's API key"
    )
    group.add_argument(
        "--embedding-batch",
        metavar="N",
        type=int,
        choices=range(1, 2049),
        default=64,
        help="passages in each request, 1 to 2048 (default: %(default)s)",
    )


def build(arguments: argparse.Namespace) -> int:
    """Builds or updates the index once; returns the exit code."""
    try:
        sources = find_sources(arguments.docs, follow_links=arguments.follow_links)
        with closing(IndexWriter(arguments.out)) as index:
            counts = index.update(sources, arguments.base_url)
        # From here the index is complete for the search by words, and readers use it.
        counts["embedded"] = asyncio.run(embed(arguments)) if arguments.embedding_model else 0
    except (IndexBuildError, OSError, ImportError, AttributeError, sqlite3.Error) as error:
        print(f"cannot build the index: {error}", file=sys.stderr)
        return 1
    actions = ["indexed", "unchanged", "removed", "skipped"]
    actions += ["embedded"] if arguments.embedding_model else []
    print(f"{arguments.out}: " + ", ".join(f"{counts[action]} {action}" for action in actions))
    if not (counts["indexed"] or counts["unchanged"]):
        return 1
    return 3 if counts["skipped"] else 0


def open_embedder(arguments: argparse.Namespace) -> HttpEmbedder:
    """The encoder of the options that `add_embedding_arguments` adds. Raises OSError."""
    key = arguments.embedding_key_file.read_text().strip() if arguments.embedding_key_file else ""
    return HttpEmbedder(
        arguments.embedding_url, arguments.embedding_model, key, EMBEDDING_TIMEOUT_SECONDS
    )


async def embed(arguments: argparse.Namespace) -> int:
    """Embeds the passages that have no vector; returns their number. Raises IndexBuildError."""
    if not arguments.out.exists():
        return 0  # no document could be read
    embedder = open_embedder(arguments)
    try:
        with closing(IndexWriter(arguments.out)) as index:
            return await embed_passages(index.vectors, embedder, arguments.embedding_batch)
    finally:
        await embedder.close()


if __name__ == "__main__":
    sys.exit(main())
