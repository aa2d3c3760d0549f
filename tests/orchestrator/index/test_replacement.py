"""An index file that is replaced, removed, rebuilt or overwritten while it is searched."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.index.build import main
from orchestrator.index.writer import IndexWriter
from orchestrator.search.retrieval import MAX_TEXT_CHARACTERS
from orchestrator.search.retrievers.sqlite_index import NUM_THREADS, IndexRetriever


def build(folder: Path, word: str, name: str = "index.sqlite3") -> Path:
    """An index with one document that contains `word`."""
    docs = folder / f"docs-{word}"
    docs.mkdir()
    (docs / "a.txt").write_text(f"Title\n\nThe word is {word}.")
    assert main([str(docs), "--out", str(folder / name)]) == 0
    return folder / name


@pytest.fixture
async def retriever(tmp_path: Path) -> AsyncIterator[IndexRetriever]:
    """A retriever of an index with the word `old`."""
    opened = IndexRetriever(build(tmp_path, "old"))
    yield opened
    await opened.close()


async def found(retriever: IndexRetriever) -> set[str]:
    """The texts that several searches find, on every thread."""
    searches = [await retriever.search("word", 5, False) for _ in range(2 * NUM_THREADS)]
    return {result.text for results in searches for result in results}


OLD, NEW = {"The word is old."}, {"The word is new."}


async def test_a_file_moved_over_the_index_is_opened(
    retriever: IndexRetriever, tmp_path: Path
) -> None:
    """`mv new old`: the next search reads the new file, also after an update in place."""
    assert await found(retriever) == OLD
    build(tmp_path, "updated")
    assert await found(retriever) == {"The word is updated."}
    os.replace(build(tmp_path, "new", "other"), tmp_path / "index.sqlite3")
    assert await found(retriever) == NEW


async def test_a_removed_index_is_kept_until_it_is_rebuilt(
    retriever: IndexRetriever, tmp_path: Path
) -> None:
    """Also while the new file has no documents yet."""
    path = tmp_path / "index.sqlite3"
    path.unlink()
    assert await found(retriever) == OLD
    with closing(IndexWriter(path)):
        assert await found(retriever) == OLD
    build(tmp_path, "new")
    assert await found(retriever) == NEW


@pytest.mark.parametrize("content", ["text", "empty", "truncated", "damaged", "version", "folder"])
async def test_the_last_good_index_is_kept(
    content: str, retriever: IndexRetriever, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An unusable file is logged once for each thread, and replaced by the next usable one."""
    path, bad = tmp_path / "index.sqlite3", build(tmp_path, "bad", "bad")
    if content == "truncated":
        bad.write_bytes(bad.read_bytes()[:-4096])
    elif content == "damaged":
        data = bytearray(bad.read_bytes())
        data[3 * 4096 : -4096] = b"x" * (len(data) - 4 * 4096)
        bad.write_bytes(data)
    elif content == "version":
        with closing(sqlite3.connect(bad)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        bad.write_text("no database, but some text" if content == "text" else "")
    if content == "folder":
        path.unlink()
        path.mkdir()
    else:
        os.replace(bad, path)
    with caplog.at_level(logging.WARNING):
        assert await found(retriever) == OLD
        assert await found(retriever) == OLD
    messages = [record.message for record in caplog.records]
    assert messages == ["changed index file is unusable, the last one is kept"] * len(messages)
    assert 1 <= len(messages) <= NUM_THREADS
    if content == "folder":
        path.rmdir()
    os.replace(build(tmp_path, "new", "other"), path)
    assert await found(retriever) == NEW


async def test_an_overwritten_index_is_read_again(
    retriever: IndexRetriever, tmp_path: Path
) -> None:
    """`cp new old` keeps the file and changes its content."""
    assert await found(retriever) == OLD
    shutil.copyfile(build(tmp_path, "new", "other"), tmp_path / "index.sqlite3")
    assert await found(retriever) == NEW


async def test_a_damaged_index_recovers_without_a_restart(
    retriever: IndexRetriever, tmp_path: Path
) -> None:
    """A search of a file that was overwritten with garbage fails; a rebuilt one is searched."""
    path = tmp_path / "index.sqlite3"
    assert await found(retriever) == OLD
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"x" * size)
    with pytest.raises(Exception, match="not a search index"):
        await found(retriever)
    path.unlink()
    build(tmp_path, "new")
    assert await found(retriever) == NEW


async def test_a_long_passage_of_an_index_is_cut(retriever: IndexRetriever, tmp_path: Path) -> None:
    """A result has a maximum length, whatever the file contains."""
    with closing(sqlite3.connect(tmp_path / "index.sqlite3")) as connection:
        connection.execute("UPDATE passages SET text = text || ?", ("x" * 1_000_000,))
        connection.commit()
    [result] = await retriever.search("word", 5, False)
    assert len(result.text) == MAX_TEXT_CHARACTERS
