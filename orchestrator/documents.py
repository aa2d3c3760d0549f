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
from markdown_it import MarkdownIt

from orchestrator.sentences import split_sentences

SUFFIXES = (".md", ".markdown", ".txt", ".text", ".html", ".htm")

PASSAGE_WORDS = 110
"""A passage ends with the sentence that reaches this."""

OVERLAP_SENTENCES = 1
"""Sentences at the end of a passage that the next one begins with."""

_NOT_PROSE = ("script", "style", "pre", "table", "nav", "header", "footer", "aside", "form", "svg")
_BLOCKS = ("p", "li", "blockquote", "dd")
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
    sentences = [each for paragraph in section.paragraphs for each in split_sentences(paragraph)]
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


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """`key: value` lines between two lines of `---`, and the text behind them."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return {}, text
    pairs = (line.partition(":") for line in found[1].splitlines())
    properties = {key.strip().lower(): value.strip(" \"'") for key, colon, value in pairs if colon}
    return properties, text[found.end() :]


def _markdown(text: str) -> tuple[str, list[Section]]:
    # Raw HTML in Markdown is not rendered, so it cannot smuggle text past the parser.
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return _html(html)


def _html(text: str) -> tuple[str, list[Section]]:
    soup = BeautifulSoup(text, "html.parser")
    page_title = _text(soup.title) if soup.title else ""
    for element in soup(_NOT_PROSE):
        element.decompose()
    title = ""
    sections: list[tuple[str, list[str]]] = [("", [])]
    for element in soup.find_all(["h1", "h2", "h3", "h4", "h5", "h6", *_BLOCKS]):
        if element.name not in _BLOCKS:
            if element.name == "h1" and not title:
                title = _text(element)
            else:
                sections.append((_text(element), []))
        elif element.find(_BLOCKS) is None:  # an outer block's text is that of its inner ones
            sections[-1][1].append(_text(element))
    return title or page_title, [Section(heading, prose) for heading, prose in sections]


def _plain(text: str) -> tuple[str, list[Section]]:
    paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    first = paragraphs[0] if paragraphs else ""
    is_title = 0 < len(first.split()) <= 12 and not first.endswith((".", "!", "?"))
    return (first, [Section("", paragraphs[1:])]) if is_title else ("", [Section("", paragraphs)])


def _text(element: object) -> str:
    return " ".join(element.get_text(" ").split()) if hasattr(element, "get_text") else ""
