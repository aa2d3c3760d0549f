"""Building, updating and searching the index."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.index.build import main
from orchestrator.index.documents import PASSAGE_CHARACTERS, PASSAGE_WORDS, parse
from orchestrator.index.formats import UnreadableDocument
from orchestrator.search.retrieval import MAX_TITLE_CHARACTERS, NoRetriever
from orchestrator.search.retrievers import index_words
from orchestrator.search.retrievers.index_file import IndexUnusable
from orchestrator.search.retrievers.sqlite_index import IndexRetriever

CORPUS = Path(__file__).parents[3] / "examples" / "corpus"

MARKDOWN = b"""---
url: https://example.com/cats
---
# All about cats

Cats are *small* [carnivores](https://example.com). They sleep a lot.

```sh
rm -rf cats
```

## Food

| a | b |
|---|---|
| 1 | 2 |

Cats eat fish & mice. <b>They</b> hunt at night.

<!-- not for people -->

- Fish is food for cats.
  - So is meat.
"""


@pytest.fixture(scope="session")
def corpus_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an index of the example corpus."""
    out = tmp_path_factory.mktemp("index") / "sub" / "corpus.sqlite3"
    assert main([str(CORPUS), "--out", str(out)]) == 0
    return out


def write(folder: Path, **documents: str) -> None:
    """Writes text files; each keyword is a file's name."""
    folder.mkdir(exist_ok=True)
    for name, text in documents.items():
        (folder / f"{name}.txt").write_text(text)


async def titles(index: Path, query: str, num_results: int = 10) -> list[str]:
    """The titles that a query finds."""
    retriever = IndexRetriever(index)
    try:
        found = await retriever.search(query, num_results, False)
        return list(dict.fromkeys(result.title for result in found))
    finally:
        await retriever.close()


def test_markdown_is_converted_to_prose() -> None:
    """Markup and link targets are removed; a row of a table is a sentence, code stays."""
    document = parse(Path("cats.md"), MARKDOWN)
    text = " ".join(passage.text for passage in document.passages)
    assert document.title == "All about cats"
    assert document.url == "https://example.com/cats"
    assert text.startswith("Cats are small carnivores. They sleep a lot.")
    assert "rm -rf cats" in text
    assert (
        "a: 1; b: 2. Cats eat fish & mice. They hunt at night. Fish is food for cats. So is meat."
        in text
    )
    assert "people" not in text
    assert [passage.heading for passage in document.passages] == ["", "Food"]


def test_html_is_converted_to_prose() -> None:
    """Scripts and navigation are removed, entities decoded, nested blocks not duplicated."""
    html = (
        b"<html><head><title>Page</title><script>var x;</script></head><body><nav><p>Home</p></nav>"
        b"<h1>Dogs</h1><ul><li><p>Dogs bark &amp; run.</p></li></ul></body></html>"
    )
    document = parse(Path("d.html"), html)
    assert document.title == "Dogs"
    assert [passage.text for passage in document.passages] == ["Dogs bark & run."]


def test_passages_end_with_sentences_and_overlap() -> None:
    """Each passage begins with the last sentence of the one before."""
    text = " ".join(f"This is the long and winding sentence number {n}." for n in range(60))
    document = parse(Path("long.txt"), text.encode())
    assert len(document.passages) > 3
    for one, two in zip(document.passages, document.passages[1:], strict=False):
        last = one.text.rsplit(". ", 1)[1]
        assert one.text.endswith(".")
        assert two.text.startswith(last)


@pytest.mark.parametrize(
    "line",
    [
        "".join(map(str, range(20_000))),
        " ".join(map(str, range(20_000))),
        "".join(chr(0x4E00 + number) + "\u3002" * (number % 7 == 0) for number in range(20_000)),
        ". ".join(["".join(map(str, range(1000, 1900))), "".join(map(str, range(2000, 2900)))]),
    ],
)
def test_no_passage_is_long_and_no_text_is_lost(line: str) -> None:
    """Text without spaces or sentence ends is cut by words, then by characters."""
    document = parse(Path("long.txt"), f"A title\n\n{line}".encode())
    texts = [passage.text for passage in document.passages]
    assert max(map(len, texts)) <= 2 * PASSAGE_CHARACTERS
    letters = "".join(line.split())
    position = 0
    for text in texts:
        # Consecutive passages overlap by at most a sentence.
        piece = "".join(text.split())
        position = letters.index(piece, max(0, position - PASSAGE_CHARACTERS)) + len(piece)
    assert position == len(letters)


def test_titles_headings_and_urls_are_limited() -> None:
    """A heading is stored with each of its passages."""
    text = f"---\nurl: http://{'u' * 5000}\n---\n# {'t' * 5000}\n\n## {'h' * 5000}\n\nSome prose.\n"
    document = parse(Path("a.md"), text.encode())
    assert document.title == "t" * MAX_TITLE_CHARACTERS
    assert document.url == ""
    assert [passage.heading for passage in document.passages] == ["h" * MAX_TITLE_CHARACTERS]


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"", b"---\ntitle: x\n---\n"])
def test_files_without_prose_are_unreadable(content: bytes) -> None:
    """Binary files, empty files and files with a title only."""
    with pytest.raises(UnreadableDocument):
        parse(Path("x.md"), content)


async def test_an_update_processes_only_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changed files are replaced, missing ones removed; skipped files give exit code 3."""
    docs, index = tmp_path / "docs", tmp_path / "i.sqlite3"
    write(docs, cats="Cats\n\nCats purr loudly.", dogs="Dogs\n\nDogs bark loudly.")
    (docs / "bad.md").write_bytes(b"\0\0")
    arguments = [str(docs), "--out", str(index), "--base-url", "https://x.org/"]
    assert main(arguments) == 3
    assert "2 indexed, 0 unchanged, 0 removed, 1 skipped" in capsys.readouterr().out
    assert await titles(index, "loudly") == ["Cats", "Dogs"]
    write(docs, cats="Cats\n\nCats sleep quietly.")
    (docs / "dogs.txt").unlink()
    assert main(arguments) == 3
    assert "1 indexed, 0 unchanged, 1 removed, 1 skipped" in capsys.readouterr().out
    assert await titles(index, "loudly") == []
    assert await titles(index, "quietly") == ["Cats"]
    assert main(arguments) == 3
    assert "0 indexed, 1 unchanged, 0 removed, 1 skipped" in capsys.readouterr().out


def test_invalid_arguments_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing folders, empty folders, and an output file that is not an index."""
    out = tmp_path / "i.sqlite3"
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert "no such file or folder" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty), "--out", str(out)]) == 1
    assert "no documents found" in capsys.readouterr().err
    other = tmp_path / "other"
    other.write_text("this is no database, it is a text of some length")
    write(tmp_path / "docs", a="A\n\nA text is here.")
    assert main([str(tmp_path / "docs"), "--out", str(other)]) == 1
    assert "is not a search index" in capsys.readouterr().err
    with closing(sqlite3.connect(tmp_path / "foreign.sqlite3")) as foreign:
        foreign.execute("CREATE TABLE precious (x)")
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "foreign.sqlite3")]) == 1
    assert "is another SQLite database" in capsys.readouterr().err


def test_opening_an_unusable_index_fails(tmp_path: Path) -> None:
    """The constructor raises, not the first query."""
    with pytest.raises(IndexUnusable, match="is missing"):
        IndexRetriever(tmp_path / "none")
    other = tmp_path / "other"
    other.write_text("this is no database, it is a text of some length")
    with pytest.raises(IndexUnusable, match="is not a search index"):
        IndexRetriever(other)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("AI", "Artificial intelligence"),
        ("kubernetes", "Kubernetes Overview"),
        ("what is attention", "The attention mechanism"),
        ("how does raft elect a leader", "Consensus and Raft"),
        ("grpc", "gRPC"),
        ("RAG", "Retrieval-augmented generation"),
    ],
)
async def test_the_document_about_the_topic_ranks_first(
    corpus_index: Path, query: str, first: str
) -> None:
    """Titles, their initials and first passages raise the score."""
    assert (await titles(corpus_index, query))[0] == first


async def test_a_search_returns_ranked_passages(corpus_index: Path) -> None:
    """As many as requested, sorted by score, several of a document, of limited length."""
    retriever = IndexRetriever(corpus_index)
    found = await retriever.search("neural network training", 20, False)
    await retriever.close()
    assert len(found) == 20
    assert len({result.url for result in found}) < 20
    assert len({result.text for result in found}) == 20
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert all(len(result.text.split()) < PASSAGE_WORDS + 40 for result in found)


async def test_unsafe_documents_are_left_out_on_demand(tmp_path: Path) -> None:
    """Those whose front matter has `unsafe: true`."""
    docs, index = tmp_path / "docs", tmp_path / "i.sqlite3"
    docs.mkdir()
    (docs / "a.md").write_text("---\nunsafe: true\n---\n# A\n\nA bomb is dangerous.\n")
    (docs / "b.md").write_text("# B\n\nA bomb calorimeter is safe.\n")
    assert main([str(docs), "--out", str(index)]) == 0
    retriever = IndexRetriever(index)
    everything = await retriever.search("bomb", 5, False)
    safe = await retriever.search("bomb", 5, True)
    await retriever.close()
    assert sorted(result.title for result in everything) == ["A", "B"]
    assert [result.title for result in safe] == ["B"]


@settings(deadline=None, max_examples=200)
@given(query=st.text(max_size=60))
def test_no_query_raises_an_error(corpus_index: Path, query: str) -> None:
    """User input is never parsed as FTS5 query syntax."""

    async def search() -> int:
        retriever = IndexRetriever(corpus_index)
        try:
            return len(await retriever.search(query, 3, True))
        finally:
            await retriever.close()

    assert asyncio.run(search()) <= 3


async def test_no_retriever_returns_no_results() -> None:
    """`NoRetriever` serves an orchestrator without documents."""
    assert await NoRetriever().search("x", 5, False) == []


async def test_passages_with_common_words_alone_are_left_out_of_a_large_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If enough passages have a rarer word; otherwise they are found, as in a small index."""
    texts = {f"common{n}": "A common word." for n in range(8)}
    texts |= {f"rare{n}": "A rare word, and a common one." for n in range(2)}
    write(tmp_path / "docs", **texts)
    assert main([str(tmp_path / "docs"), "--out", str(tmp_path / "index")]) == 0
    monkeypatch.setattr(index_words, "COMMON_SHARE", 0.5)
    retriever = IndexRetriever(tmp_path / "index")
    for large, ranked, number in ((10_000, 2, 10), (0, 2, 2), (0, 3, 10)):
        monkeypatch.setattr(index_words, "LARGE_INDEX", large)
        monkeypatch.setattr(index_words, "MIN_RANKED", ranked)
        found = await retriever.search("common rare absent", 20, False)
        assert len(found) == number
        assert {result.url for result in found[:2]} == {"rare0.txt", "rare1.txt"}
    assert len(await retriever.search("common word", 20, False)) == 10
    assert await retriever.search("absent", 20, False) == []
    await retriever.close()
