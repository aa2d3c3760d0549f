"""Updating the index while it is searched."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from orchestrator.index.build import find_sources, main
from orchestrator.index.writer import IndexBuildError, IndexWriter
from orchestrator.search.retrievers.index_file import IndexConnection, IndexUnusable
from orchestrator.search.retrievers.sqlite_index import IndexRetriever

NUM_DOCUMENTS = 20


def write(folder: Path, word: str) -> None:
    """Writes documents that all contain `word`."""
    folder.mkdir(exist_ok=True)
    for number in range(NUM_DOCUMENTS):
        (folder / f"{number}.txt").write_text(f"Number {number}\n\nThe word is {word}.")


@pytest.mark.timeout(30)
async def test_a_reader_sees_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    """Never a mixture and never an error; the reader sees updates without reopening the file."""
    docs, index = tmp_path / "docs", tmp_path / "i.sqlite3"
    write(docs, "round0")
    assert main([str(docs), "--out", str(index)]) == 0
    retriever = IndexRetriever(index)
    done = threading.Event()

    def update() -> None:
        for number in range(1, 6):
            write(docs, f"round{number}")
            assert main([str(docs), "--out", str(index)]) == 0
        done.set()

    updating = asyncio.create_task(asyncio.to_thread(update))
    seen: set[str] = set()
    while not done.is_set() and not updating.done():
        found = await retriever.search("word", NUM_DOCUMENTS, False)
        assert len(found) == NUM_DOCUMENTS
        [round_] = {result.text for result in found}
        seen.add(round_)
    await updating
    assert {result.text for result in await retriever.search("word", 5, False)} == {
        "The word is round5."
    }
    await retriever.close()


def test_a_finished_index_is_one_file(tmp_path: Path) -> None:
    """No write-ahead log remains, even if a reader was connected during the update."""
    write(tmp_path / "docs", "x")
    arguments = [str(tmp_path / "docs"), "--out", str(tmp_path / "i")]
    assert main(arguments) == 0
    index = IndexWriter(tmp_path / "i")
    reader = IndexConnection(tmp_path / "i").current().connection
    assert reader.execute("SELECT count(*) FROM documents").fetchone() == (NUM_DOCUMENTS,)
    index.close()
    reader.close()
    assert main(arguments) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "i"]


async def test_a_cancelled_search_frees_its_thread(tmp_path: Path) -> None:
    """The progress handler interrupts the query, so the next search gets the thread."""
    write(tmp_path / "docs", "x")
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "i")]) == 0
    retriever = IndexRetriever(tmp_path / "i")
    connection = retriever._connections[0].current().connection
    cancelled = threading.Event()
    connection.set_progress_handler(cancelled.is_set, 1000)
    cancelled.set()
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n"
    with pytest.raises(Exception, match="interrupted"):
        connection.execute(endless).fetchone()
    for _ in range(3):
        searching = asyncio.create_task(retriever.search("x", 5, False))
        await asyncio.sleep(0)
        searching.cancel()
        await asyncio.gather(searching, return_exceptions=True)
    assert len(await retriever.search("x", 5, False)) == 5
    await retriever.close()


def test_a_failed_update_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is one transaction."""
    docs, path = tmp_path / "docs", tmp_path / "i.sqlite3"
    write(docs, "old")
    assert main([str(docs), "--out", str(path)]) == 0
    write(docs, "new")
    index = IndexWriter(path)
    real = index._update_one

    def fail_at_last(source: object, base_url: str) -> str:
        if getattr(source, "name", "") == "9.txt":
            raise OSError("disk full")
        return real(source, base_url)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "_update_one", fail_at_last)
    with pytest.raises(OSError, match="disk full"):
        index.update(find_sources([docs]), "")
    count = "SELECT count(*) FROM terms WHERE terms MATCH ?"
    assert index._connection.execute(count, ("old",)).fetchone() == (NUM_DOCUMENTS,)
    assert index._connection.execute(count, ("new",)).fetchone() == (0,)
    index.close()


def test_two_documents_with_the_same_name_are_refused(tmp_path: Path) -> None:
    """One would replace the other; passing the same file twice is allowed."""
    write(tmp_path / "one", "x")
    write(tmp_path / "two", "x")
    with pytest.raises(IndexBuildError, match=r"have the same name 0\.txt"):
        find_sources([tmp_path / "one", tmp_path / "two"])
    twice = find_sources([tmp_path / "one", tmp_path / "one" / "3.txt"])
    assert len(twice) == NUM_DOCUMENTS


def test_links_out_of_a_folder_are_not_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those inside it are, such as files that Kubernetes mounts; each document is found once."""
    docs, path = tmp_path / "docs", tmp_path / "index"
    (docs / "..2026").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("A secret word.")
    (docs / "..2026" / "a.txt").write_text("A public word.")
    (docs / "..data").symlink_to("..2026")
    (docs / "a.txt").symlink_to("..data/a.txt")
    (docs / "out.txt").symlink_to("../secret.txt")
    (docs / "gone.txt").symlink_to("nowhere")
    (docs / "map" / "..2026").mkdir(parents=True)
    (docs / "map" / "..2026" / "b.txt").write_text("Another public word.")
    (docs / "map" / "b.txt").symlink_to("..2026/b.txt")
    assert main([str(docs), "--out", str(path)]) == 3
    printed = capsys.readouterr()
    assert "2 indexed, 0 unchanged, 0 removed, 1 skipped" in printed.out
    assert f"skipped out.txt: is a link out of {docs}, to {tmp_path}/secret.txt" in printed.err
    assert main([str(docs), "--out", str(path), "--follow-links"]) == 0
    assert "1 indexed, 2 unchanged" in capsys.readouterr().out
    assert main([str(docs), "--out", str(path)]) == 3
    with closing(sqlite3.connect(path)) as index:
        paths = index.execute("SELECT path FROM documents ORDER BY path").fetchall()
    assert paths == [("a.txt",), ("map/b.txt",)]


def words_of(path: Path) -> dict[str, int]:
    """The words by which misspelled ones are corrected, with the numbers of their passages."""
    with closing(sqlite3.connect(path)) as index:
        return dict(index.execute("SELECT * FROM words"))


def test_unused_words_are_removed_once(tmp_path: Path) -> None:
    """Not with each document: it takes a scan of all words."""
    write(tmp_path / "docs", "oldest")
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "i")]) == 0
    write(tmp_path / "docs", "newest")
    statements: list[str] = []
    with closing(IndexWriter(tmp_path / "i")) as index:
        index._connection.set_trace_callback(statements.append)
        assert index.update(find_sources([tmp_path / "docs"]), "")["indexed"] == NUM_DOCUMENTS
    assert sum(each.startswith("DELETE FROM words") for each in statements) == 1
    assert words_of(tmp_path / "i") == {"newest": NUM_DOCUMENTS, "number": NUM_DOCUMENTS}


async def test_the_words_of_an_index_follow_its_documents(tmp_path: Path) -> None:
    """Those of deleted documents are deleted; an index without words gets them."""
    docs, path = tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    (docs / "a.txt").write_text("Cherries and cherries taste good.")
    (docs / "b.txt").write_text("Bananas taste sweet.")
    assert main([str(docs), "--out", str(path)]) == 0
    whole = words_of(path)
    assert whole == {"cherries": 1, "taste": 2, "bananas": 1, "sweet": 1}
    (docs / "a.txt").write_text("Nothing.")
    assert main([str(docs), "--out", str(path)]) == 0
    assert words_of(path) == {"nothing": 1, "taste": 1, "bananas": 1, "sweet": 1}
    with closing(sqlite3.connect(path)) as index:
        index.execute("DROP TABLE words")
    retriever = IndexRetriever(path)
    assert await retriever.search("bananqas", 1, False) == []
    await retriever.close()
    assert main([str(docs), "--out", str(path)]) == 0
    assert words_of(path) == {"nothing": 1, "taste": 1, "bananas": 1, "sweet": 1}
    retriever = IndexRetriever(path)
    [found] = await retriever.search("bananqas", 1, False)
    await retriever.close()
    assert found.text == "Bananas taste sweet."


async def test_an_index_of_an_older_version_is_built_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reader refuses it and says how to rebuild it; the next build replaces it."""
    write(tmp_path / "docs", "x")
    path = tmp_path / "i"
    with closing(sqlite3.connect(path)) as old:
        old.executescript("PRAGMA user_version = 1; CREATE TABLE documents (id INTEGER);")
    with pytest.raises(IndexUnusable, match="version 1, not 2; rebuild it with python -m"):
        IndexRetriever(path)
    assert main([str(tmp_path / "docs"), "--out", str(path)]) == 0
    assert "has version 1, not 2: rebuilding it" in capsys.readouterr().err
    retriever = IndexRetriever(path)
    assert len(await retriever.search("word", NUM_DOCUMENTS, False)) == NUM_DOCUMENTS
    await retriever.close()


def test_an_index_of_a_newer_version_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that does not know its format leaves it unchanged."""
    write(tmp_path / "docs", "x")
    path = tmp_path / "i"
    with closing(sqlite3.connect(path)) as newer:
        newer.executescript("PRAGMA user_version = 99; CREATE TABLE documents (id INTEGER);")
    content = path.read_bytes()
    assert main([str(tmp_path / "docs"), "--out", str(path)]) == 1
    assert "has version 99, newer than 2" in capsys.readouterr().err
    assert path.read_bytes() == content
