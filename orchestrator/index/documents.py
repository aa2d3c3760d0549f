"""Documents as the index wants them: a title, and passages of plain prose.

Knows Markdown, HTML and plain text. Code, tables and navigation are left out: a summary quotes
sentences, and those are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup
from bs4.element import NavigableString
from markdown_it import MarkdownIt

from orchestrator.search.grounding.sentences import split_sentences

SUFFIXES = (".md", ".markdown", ".txt", ".text", ".html", ".htm")

PASSAGE_WORDS = 50
"""A passage ends with the sentence that reaches this. Several short passages tell a reader and a
small model more exactly what fits than few long ones."""

OVERLAP_SENTENCES = 1
"""Sentences at the end of a passage that the next one begins with."""

_NOT_PROSE = ("script", "style", "pre", "table", "nav", "header", "footer", "aside", "form", "svg")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *_HEADINGS, "p", "li", "blockquote", "dd", "dt", "div", "section", "article", "main", "body",
)  # fmt: skip
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class UnreadableDocument(Exception):
    """The file is no text, or has none; the message says why."""


class Section(NamedTuple):
    """Prose under one heading; the heading is empty at the beginning of a document."""

    heading: str
    paragraphs: Sequence[str]


class Passage(NamedTuple):
    """A few sentences that stand together."""

    heading: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A document; `url` is empty unless its front matter has one."""

    title: str
    url: str
    unsafe: bool
    passages: Sequence[Passage]


def parse(path: Path, content: bytes) -> Document:
    """The document in a file of one of `SUFFIXES`. Raises UnreadableDocument."""
    if b"\0" in content[:8192]:
        raise UnreadableDocument("is binary")
    text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    if path.suffix.lower() in (".html", ".htm"):
        title, sections, properties = *_html(text), dict[str, str]()
    else:
        properties, text = _front_matter(text)
        plain = path.suffix.lower() in (".txt", ".text")
        title, sections = _plain(text) if plain else _markdown(text)
    passages = [passage for section in sections for passage in cut(section)]
    if not passages:
        raise UnreadableDocument("has no prose")
    return Document(
        title=properties.get("title") or title or path.stem.replace("-", " ").replace("_", " "),
        url=properties.get("url", ""),
        unsafe=properties.get("unsafe", "").lower() == "true",
        passages=passages,
    )


def cut(section: Section) -> Iterator[Passage]:
    """Passages of about `PASSAGE_WORDS`, on sentence borders, overlapping by a sentence."""
    sentences = [
        piece
        for paragraph in section.paragraphs
        for sentence in split_sentences(paragraph)
        for piece in _pieces(sentence)
    ]
    begin = 0
    while begin < len(sentences):
        end, num_words = begin, 0
        while end < len(sentences) and num_words < PASSAGE_WORDS:
            num_words += len(sentences[end].split())
            end += 1
        yield Passage(section.heading, " ".join(sentences[begin:end]))
        if end == len(sentences):
            return
        begin = max(end - OVERLAP_SENTENCES, begin + 1)


def _pieces(sentence: str) -> Iterator[str]:
    """The sentence, or what has no end of one, cut to the length of a passage."""
    words = sentence.split()
    for begin in range(0, len(words), PASSAGE_WORDS):
        yield " ".join(words[begin : begin + PASSAGE_WORDS])


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """`key: value` lines between two lines of `---`, and the text behind them."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return {}, text
    pairs = (line.partition(":") for line in found[1].splitlines())
    properties = {key.strip().lower(): value.strip(" \"'") for key, colon, value in pairs if colon}
    return properties, text[found.end() :]


def _markdown(text: str) -> tuple[str, list[Section]]:
    # HTML in it is rendered as such, so that its tags and comments are left out like others.
    return _html(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def _html(text: str) -> tuple[str, list[Section]]:
    soup = BeautifulSoup(text, "html.parser")
    page_title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup([*_NOT_PROSE, "title"]):
        element.decompose()
    for line_break in soup("br"):
        line_break.replace_with(" ")
    title = ""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for name, prose in _blocks(soup):
        if name == "h1" and not title:
            title = prose
        elif name in _HEADINGS:
            sections.append((prose, []))
        else:
            sections[-1][1].append(prose)
    return title or page_title, [Section(heading, prose) for heading, prose in sections]


def _blocks(soup: BeautifulSoup) -> Iterator[tuple[str, str]]:
    """Name and text of each stretch that belongs to one block, in the order of the page."""
    current: object = None
    name, pieces = "", list[str]()
    for string in soup.find_all(string=True):
        if type(string) is not NavigableString:  # a comment, or a declaration
            continue
        block = string.find_parent(_BLOCKS)
        if block is not current:
            yield from _block(name, pieces)
            current, name, pieces = block, block.name if block else "", []
        pieces.append(string)
    yield from _block(name, pieces)


def _block(name: str, pieces: Sequence[str]) -> Iterator[tuple[str, str]]:
    text = " ".join("".join(pieces).split())
    if text:
        yield name, text


def _plain(text: str) -> tuple[str, list[Section]]:
    paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    first = paragraphs[0] if paragraphs else ""
    is_title = 0 < len(first.split()) <= 12 and not first.endswith((".", "!", "?"))
    return (first, [Section("", paragraphs[1:])]) if is_title else ("", [Section("", paragraphs)])
