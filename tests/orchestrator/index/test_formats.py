"""Formats of documents, and files that are damaged, in any encoding, or changed while watched."""

from __future__ import annotations

import asyncio
import io
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docx
import pytest

from orchestrator.index import build, cpu_limit, formats, writer
from orchestrator.index.build import main
from orchestrator.index.documents import Document, parse
from orchestrator.index.formats import UnreadableDocument
from orchestrator.index.html_tree import MAX_DEPTH, HtmlTree
from orchestrator.search.retrievers.sqlite_index import IndexRetriever

SENTENCE = "Größe und Gewicht der Füchse sind verschieden, wie die Bücher über Tiere erzählen."


def pdf(*lines: str) -> bytes:
    """A PDF file of one page with these lines."""
    shown = " T* ".join(f"({line}) Tj" for line in lines)
    stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (About foxes) >>",
    ]
    data, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, each in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = len(data)
    data += b"xref\n0 7\n0000000000 65535 f \n"
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer << /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF" % table
    return bytes(data)


def word() -> bytes:
    """A DOCX file with a heading and a table."""
    document = docx.Document()
    document.core_properties.title = "Animals"
    document.add_paragraph("A fox is small.")
    document.add_heading("Food", level=1)
    table = document.add_table(rows=2, cols=2)
    for row, texts in zip(table.rows, [("Animal", "Eats"), ("fox", "mice")], strict=True):
        for cell, text in zip(row.cells, texts, strict=True):
            cell.text = text
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


ARTICLE = f"""<html><head><title>Foxes</title></head><body>
<div class="menu"><ul><li><a href="/a">Home</a></li><li><a href="/b">Login</a></li></ul></div>
<div class="cookie-banner">We use cookies to improve this site. <button>Accept</button></div>
<article><h1>Foxes</h1><p>{"A fox is a small wild dog that lives in a den. " * 6}</p>
<h2>Food</h2><p>{"A fox eats mice, birds and berries in the wood. " * 6}</p></article>
<div class="footer"><p>Copyright 2020. <a href="/terms">Terms</a></p></div></body></html>"""


def texts(name: str, content: bytes) -> str:
    """All passages of a document."""
    return " ".join(passage.text for passage in parse(Path(name), content).passages)


def test_a_pdf_is_read() -> None:
    """Its title, and lines as paragraphs with hyphenated words joined."""
    document = parse(Path("x.pdf"), pdf("The fox lives in a bur-", "row and sleeps by day."))
    assert document.title == "About foxes"
    assert document.passages[0].text == "The fox lives in a burrow and sleeps by day."


def test_a_docx_file_is_read() -> None:
    """Its title, headings, paragraphs, and rows of tables."""
    document = parse(Path("x.docx"), word())
    assert document.title == "Animals"
    assert [(p.heading, p.text) for p in document.passages] == [
        ("", "A fox is small."),
        ("Food", "Animal: fox; Eats: mice."),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_has_a_sentence_for_each_row(delimiter: str) -> None:
    """With the names of the columns; quoted cells may contain anything."""
    rows = ['name,colour,"remark"', 'fox,red,"small, and\nfast"', "wolf,grey,", "", "hen,white,x"]
    content = "\n".join(row if '"' in row else row.replace(",", delimiter) for row in rows)
    content = content.replace('name,colour,"', f'name{delimiter}colour{delimiter}"')
    content = content.replace('fox,red,"', f'fox{delimiter}red{delimiter}"')
    assert texts("x.csv", content.encode()) == (
        "name: fox; colour: red; remark: small, and fast. name: wolf; colour: grey. "
        "name: hen; colour: white; remark: x."
    )


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "utf-16-be-mark"]
)
def test_text_in_any_encoding_is_read(encoding: str) -> None:
    """By its byte order mark, or its letters."""
    content = f"{SENTENCE} {SENTENCE}"
    if encoding == "utf-16-be-mark":
        data = b"\xfe\xff" + content.encode("utf-16-be")
    else:
        data = content.encode(encoding)
    assert SENTENCE in texts("x.txt", data)


def test_a_web_page_declares_its_encoding() -> None:
    """In a `meta` element."""
    html = (
        f'<html><head><meta charset="koi8-r"></head><body><p>{"Лиса живёт в норе. " * 9}</p></body>'
    )
    assert "Лиса живёт в норе." in texts("x.html", html.encode("koi8-r"))


def test_boilerplate_of_a_web_page_is_left_out() -> None:
    """Menus and banners without the elements that mark them; headings stay."""
    document = parse(Path("x.html"), ARTICLE.encode())
    text = " ".join(passage.text for passage in document.passages)
    assert document.title == "Foxes"
    assert "small wild dog" in text
    assert "Food" in {passage.heading for passage in document.passages}
    assert not any(word in text for word in ("cookies", "Login", "Copyright"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.pdf", b"%PDF-1.4 nothing", "damaged PDF"),
        ("x.pdf", pdf("fox")[:300], "damaged PDF|no prose"),
        ("x.docx", b"PK\x03\x04 nothing", "damaged DOCX"),
        ("x.txt", b"\x00\x01\x02\x03", "binary"),
        ("x.csv", b"name,colour\n", "no prose"),
        ("x.csv", b"a,b\n" + b"1," * 2000, "at most 1000 columns, has 2001"),
    ],
)
def test_a_damaged_file_is_reported(name: str, content: bytes, reason: str) -> None:
    """With the reason, as an error that skips this file alone."""
    with pytest.raises(UnreadableDocument, match=reason):
        parse(Path(name), content)


def repacked(**changed: bytes) -> bytes:
    """The DOCX file with its parts changed or added, by their names without suffix."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(word())) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, changed.get(Path(name).stem, old.read(name)))
        if "picture" in changed:
            new.writestr("word/media/picture.png", changed["picture"])
    return packed.getvalue()


def test_a_docx_file_cannot_unpack_to_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few KiB that would take gigabytes, or hours, are refused by limit and value."""
    monkeypatch.setattr(formats, "MAX_XML_BYTES", 1_000_000)
    monkeypatch.setattr(formats, "MAX_UNPACKED_BYTES", 2_000_000)
    with zipfile.ZipFile(io.BytesIO(word())) as package:
        body = package.read("word/document.xml")
    wide = body.replace(b"<w:tcPr>", b'<w:tcPr><w:gridSpan w:val="50000000"/>', 1)
    long = body.replace(b"<w:body>", b"<w:body>" + b"<w:p/>" * (formats.MAX_XML_BYTES // 6))
    for content, reason in (
        (repacked(document=wide), "at most 1000 columns, has 50000001"),
        (repacked(document=long), r"at most 1000000 bytes of XML, has 1\d{6}"),
        (
            repacked(picture=bytes(formats.MAX_UNPACKED_BYTES)),
            "at most 2000000 bytes unpacked, has 2",
        ),
    ):
        assert len(content) < 100_000
        with pytest.raises(UnreadableDocument, match=reason):
            parse(Path("x.docx"), content)


def test_damaged_files_are_skipped_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are indexed, and the exit code says that some are missing."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "good.pdf").write_bytes(pdf("A fox is small."))
    (docs / "bad.docx").write_bytes(b"nothing")
    assert main([str(docs), "--out", str(tmp_path / "index")]) == 3
    captured = capsys.readouterr()
    assert "skipped bad.docx: is a damaged DOCX file" in captured.err
    assert "1 indexed, 0 unchanged, 0 removed, 1 skipped" in captured.out


def test_elements_inside_one_another_are_bounded() -> None:
    """Deeper ones are placed beside the deepest one; no text is lost, and the order stays."""
    words = [f"w{number}" for number in range(3000)]
    text = "".join(f"<div><b>{word}" for word in words)
    tree = HtmlTree(text + "</b></div>" * len(words) + "<p>end</p>")
    deepest = tree.find(string="w2999")
    assert deepest is not None
    assert len(list(deepest.parents)) <= MAX_DEPTH + 1
    assert tree.get_text(" ").split() == [*words, "end"]
    prose = " ".join(passage.text for passage in parse(Path("x.html"), str(tree).encode()).passages)
    assert set(words) <= set(prose.split())


def test_a_document_that_takes_too_long_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its parser catches; so is one whose parser fails. The others are indexed."""

    def slow(path: Path, content: bytes) -> Document:
        if path.stem == "nested":
            raise RecursionError
        while path.stem == "slow":
            with suppress(Exception):
                sum(range(1000))
        return parse(path, content)

    parse(Path("x.txt"), b"A fox is small.")  # loads what all documents need
    monkeypatch.setattr(writer, "parse", slow)
    monkeypatch.setattr(cpu_limit, "MAX_SECONDS", 0.2)
    for name in ("a", "nested", "slow", "z"):
        (tmp_path / f"{name}.txt").write_text("A fox is small.")
    assert main([str(tmp_path), "--out", str(tmp_path / "index")]) == 3
    captured = capsys.readouterr()
    assert "skipped slow.txt: must be parsed in at most 0.2 s of CPU time" in captured.err
    assert "skipped nested.txt: cannot be parsed: RecursionError" in captured.err
    assert "2 indexed, 0 unchanged, 0 removed, 2 skipped" in captured.out
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@pytest.mark.timeout(60)
def test_a_caught_interruption_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that catches everything is interrupted again."""
    monkeypatch.setattr(cpu_limit, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(cpu_limit, "REPEAT_SECONDS", 0.05)
    num_caught = 0

    def compute() -> None:
        end = time.process_time() + 20
        while time.process_time() < end:
            pass

    def parse_twice() -> None:
        nonlocal num_caught
        try:
            compute()
        except BaseException:
            num_caught += 1
        compute()

    with pytest.raises(UnreadableDocument, match="CPU time"), cpu_limit.limited_cpu_time():
        parse_twice()
    assert num_caught == 1
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


@contextmanager
def watching(docs: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs `--watch` in a thread, and stops it at the end."""
    stopped = threading.Event()

    def wait(seconds: float) -> None:
        if stopped.wait(seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr(build.time, "sleep", wait)
    arguments = [str(docs), "--out", str(index), "--watch", "0.01"]
    thread = threading.Thread(target=main, args=(arguments,))
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(20)
    assert not thread.is_alive()


async def test_a_watched_folder_is_followed_while_it_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Added, changed and deleted files; the served index is updated without a restart."""
    docs, index = tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    (docs / "a.txt").write_text("The fox is here.")
    assert main([str(docs), "--out", str(index)]) == 0
    retriever = IndexRetriever(index)

    async def found(word: str, names: set[str]) -> None:
        async with asyncio.timeout(20):
            while {each.url for each in await retriever.search(word, 9, False)} != names:
                await asyncio.sleep(0.01)

    with watching(docs, index, monkeypatch):
        (docs / "b.csv").write_text("name,colour\nfox,red\n")
        await found("fox", {"a.txt", "b.csv"})
        (docs / "a.txt").write_text("The wolf is here.")
        await found("wolf", {"a.txt"})
        (docs / "b.csv").unlink()
        await found("fox", set())
    await retriever.close()
