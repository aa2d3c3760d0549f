"""Readers of the formats that are no text with markup: PDF, DOCX, tables, and text encodings."""

from __future__ import annotations

import codecs
import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from bs4.dammit import EncodingDetector
from charset_normalizer import from_bytes
from pypdf import PdfReader

if TYPE_CHECKING:
    from docx.table import _Cell, _Row

MAX_SNIFFED_CHARACTERS = 20_000
"""Text by which the delimiter of a table is recognised."""

MAX_XML_BYTES = 32 * 1024 * 1024
"""Size of the XML in a DOCX file; a file of some KiB can unpack to gigabytes."""

MAX_UNPACKED_BYTES = 256 * 1024 * 1024
"""Size of a DOCX file with its pictures; they are compressed already, and are unpacked too."""

MAX_TABLE_COLUMNS = 1000
"""Columns of a table, each row of which becomes one sentence. Word allows 63; a cell in a DOCX file
can claim any number."""

_DELIMITERS = ",;\t|"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # UTF-32 first: its mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class UnreadableDocument(Exception):
    """The file's format is not supported or contains no prose; the message has the reason."""


class Section(NamedTuple):
    """The prose under one heading; text before the first heading has an empty one."""

    heading: str
    paragraphs: Sequence[str]


class Content(NamedTuple):
    """The title of a document, "" if it has none, and its sections."""

    title: str
    sections: Sequence[Section]


def decode(content: bytes, *, is_html: bool = False) -> str:
    """Text in any encoding: by its mark, as UTF-8, as HTML declares it, or by its letters.

    Raises UnreadableDocument for binary content.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    if b"\0" in content[:8192]:
        raise UnreadableDocument("is binary")
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass
    declared = EncodingDetector.find_declared_encoding(content, is_html=True) if is_html else None
    try:
        return content.decode(declared or "ascii")
    except (LookupError, UnicodeDecodeError):
        best = from_bytes(content).best()
        return content.decode(errors="replace") if best is None else str(best)


def read_pdf(content: bytes) -> Content:
    """The text of a PDF's pages. Raises UnreadableDocument."""
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UnreadableDocument("is encrypted")
        title = str((reader.metadata and reader.metadata.title) or "")
        paragraphs = [_joined_lines(page.extract_text()) for page in reader.pages]
    except UnreadableDocument:
        raise
    except Exception as error:
        # pypdf raises errors of its own for damaged files, and many kinds of Python's.
        raise UnreadableDocument(f"is a damaged PDF file: {error}") from error
    return Content(" ".join(title.split()), [Section("", paragraphs)])


def _joined_lines(text: str) -> str:
    """Lines as one paragraph; a word that is hyphenated at the end of a line is joined."""
    joined = ""
    for line in map(str.strip, text.splitlines()):
        if len(joined) > 1 and joined.endswith("-") and joined[-2].isalpha() and line[:1].islower():
            joined = joined[:-1] + line
        else:
            joined += f" {line}"
    return " ".join(joined.split())


def read_docx(content: bytes) -> Content:
    """The paragraphs, headings and tables of a DOCX file. Raises UnreadableDocument."""
    try:
        import docx
        from docx.table import Table
    except ImportError as error:
        raise UnreadableDocument("needs python-docx: pip install 'weir[documents]'") from error
    try:
        _check_unpacked_size(content)
        document = docx.Document(io.BytesIO(content))
        title = document.core_properties.title or ""
        sections: list[tuple[str, list[str]]] = [("", [])]
        for block in document.iter_inner_content():
            if isinstance(block, Table):
                rows = ([cell.text for cell in _cells(row)] for row in block.rows)
                sections[-1][1].extend(row_sentences(rows))
                continue
            text, style = " ".join(block.text.split()), block.style.name if block.style else ""
            if style == "Title":
                title = title or text
            elif style.startswith("Heading"):
                sections.append((text, []))
            elif text:
                sections[-1][1].append(text)
    except UnreadableDocument:
        raise
    except Exception as error:
        # zipfile, lxml and python-docx raise many kinds for damaged files.
        raise UnreadableDocument(f"is a damaged DOCX file: {error}") from error
    return Content(title, [Section(heading, prose) for heading, prose in sections])


def _check_unpacked_size(content: bytes) -> None:
    """Raises UnreadableDocument, and BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        parts = package.infolist()
    num_xml = sum(part.file_size for part in parts if part.filename.endswith((".xml", ".rels")))
    num_bytes = sum(part.file_size for part in parts)
    for kind, given, limit in (
        ("of XML", num_xml, MAX_XML_BYTES),
        ("unpacked", num_bytes, MAX_UNPACKED_BYTES),
    ):
        if given > limit:
            raise UnreadableDocument(f"must have at most {limit} bytes {kind}, has {given}")


def _cells(row: _Row) -> Sequence[_Cell]:
    """The cells of a row, one that spans several columns for each of them."""
    _check_columns(sum(cell.grid_span for cell in row._tr.tc_lst))
    return row.cells


def _check_columns(number: int) -> None:
    if number > MAX_TABLE_COLUMNS:
        raise UnreadableDocument(
            f"must have tables of at most {MAX_TABLE_COLUMNS} columns, has {number}"
        )


def read_table(text: str) -> Content:
    """The rows of a CSV file with a header, each as one sentence."""
    try:
        dialect = csv.Sniffer().sniff(text[:MAX_SNIFFED_CHARACTERS], _DELIMITERS)
    except csv.Error:
        dialect = csv.excel
    try:
        rows = _checked(csv.reader(io.StringIO(text), dialect))
        return Content("", [Section("", list(row_sentences(rows)))])
    except csv.Error as error:
        raise UnreadableDocument(f"is a damaged table: {error}") from error


def _checked(rows: Iterable[Sequence[str]]) -> Iterator[Sequence[str]]:
    for row in rows:
        _check_columns(len(row))
        yield row


def row_sentences(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Each row after the first as a sentence of the columns' names and values."""
    header: list[str] | None = None
    for row in rows:
        values = [" ".join(value.split()) for value in row]
        if not any(values):
            continue
        if header is None:
            header = values
            continue
        names = [*header, *[""] * (len(values) - len(header))]
        pairs = [
            f"{name}: {value}" if name else value
            for name, value in zip(names, values, strict=False)
            if value
        ]
        yield "; ".join(pairs) + "."
