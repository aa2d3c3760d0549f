"""Parses Markdown, HTML and plain text into a title and passages of plain prose.

Code, tables and navigation are left out, because a summary quotes sentences.
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
from orchestrator.search.language.languages import detect_language
from orchestrator.search.language.words import count_words
from orchestrator.search.retrieval import MAX_TITLE_CHARACTERS, MAX_URL_CHARACTERS

SUFFIXES = (".md", ".markdown", ".txt", ".text", ".html", ".htm")

PASSAGE_WORDS = 50
"""Target length of a passage in words: it ends with the sentence that reaches it.

Several short passages match a query more precisely than few long ones.
"""

PASSAGE_CHARACTERS = 800
"""Length in characters at which a passage ends even with fewer words, and maximum length of a part
of a sentence: text without spaces, such as Chinese or base64, counts as one word."""

MAX_TITLE_WORDS = 12
"""Words of a plain text's first paragraph, if it is the title."""

_SENTENCE_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\u0964", "\u061f", "\u06d4")

OVERLAP_SENTENCES = 1
"""Number of sentences that two consecutive passages share."""

_NOT_PROSE = ("script", "style", "pre", "table", "nav", "header", "footer", "aside", "form", "svg")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *_HEADINGS, "p", "li", "blockquote", "dd", "dt", "div", "section", "article", "main", "body",
)  # fmt: skip
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


class UnreadableDocument(Exception):
    """The file is not text or contains no prose; the message contains the reason."""


class Section(NamedTuple):
    """The prose under one heading; text before the first heading has an empty one."""

    heading: str
    paragraphs: Sequence[str]


class DocumentPassage(NamedTuple):
    """A few consecutive sentences of one section."""

    heading: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed document; `url` is empty unless its front matter sets one."""

    title: str
    url: str
    unsafe: bool
    language: str
    """See `languages.detect_language`."""
    passages: Sequence[DocumentPassage]


def parse(path: Path, content: bytes) -> Document:
    """Parses a file; the suffix of `path` selects the format. Raises UnreadableDocument."""
    if b"\0" in content[:8192]:
        raise UnreadableDocument("is binary")
    text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    if path.suffix.lower() in (".html", ".htm"):
        title, sections, properties = *_html(text), dict[str, str]()
    else:
        properties, text = _front_matter(text)
        plain = path.suffix.lower() in (".txt", ".text")
        title, sections = _plain(text) if plain else _markdown(text)
    prose = "\n".join(paragraph for section in sections for paragraph in section.paragraphs)
    language = detect_language(prose)
    passages = [
        passage for section in sections for passage in split_section(section, language or "en")
    ]
    if not passages:
        raise UnreadableDocument("has no prose")
    title = properties.get("title") or title or path.stem.replace("-", " ").replace("_", " ")
    url = properties.get("url", "")
    return Document(
        title=title[:MAX_TITLE_CHARACTERS],
        url=url if len(url) <= MAX_URL_CHARACTERS else "",
        unsafe=properties.get("unsafe", "").lower() == "true",
        language=language,
        passages=passages,
    )


def split_section(section: Section, language: str = "en") -> Iterator[DocumentPassage]:
    """Splits at sentence boundaries into overlapping passages of about `PASSAGE_WORDS` words.

    No passage has more than 2 × `PASSAGE_CHARACTERS` characters.
    """
    sentences = [
        part
        for paragraph in section.paragraphs
        for sentence in split_sentences(paragraph, language)
        for part in _split_sentence(sentence)
    ]
    begin = 0
    while begin < len(sentences):
        end, num_words, num_characters = begin, 0, 0
        while (
            end < len(sentences)
            and num_words < PASSAGE_WORDS
            and num_characters < PASSAGE_CHARACTERS
        ):
            num_words += count_words(sentences[end])
            num_characters += len(sentences[end]) + 1
            end += 1
        text = " ".join(sentences[begin:end])
        yield DocumentPassage(section.heading[:MAX_TITLE_CHARACTERS], text)
        if end == len(sentences):
            return
        begin = max(end - OVERLAP_SENTENCES, begin + 1)


def _split_sentence(sentence: str) -> Iterator[str]:
    """Splits a sentence, or text without sentence ends, that is longer than a passage."""
    words = sentence.split()
    for begin in range(0, len(words), PASSAGE_WORDS):
        part = " ".join(words[begin : begin + PASSAGE_WORDS])
        first = 0
        while len(part) - first > PASSAGE_CHARACTERS:
            end = part.rfind(" ", first, first + PASSAGE_CHARACTERS + 1)
            if end <= first:
                end = first + PASSAGE_CHARACTERS
            yield part[first:end]
            first = end + (part[end] == " ")
        yield part[first:]


def _front_matter(text: str) -> tuple[dict[str, str], str]:
    """Splits off front matter: `key: value` lines between two lines of `---`."""
    found = _FRONT_MATTER.match(text)
    if not found:
        return {}, text
    pairs = (line.partition(":") for line in found[1].splitlines())
    properties = {key.strip().lower(): value.strip(" \"'") for key, colon, value in pairs if colon}
    return properties, text[found.end() :]


def _markdown(text: str) -> tuple[str, list[Section]]:
    # Embedded HTML is rendered as HTML, so that its tags and comments are removed too.
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
    """The tag name and text of each run of text in the same block element, in page order."""
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
    paragraphs = list(filter(None, paragraphs))
    first = paragraphs[0] if len(paragraphs) > 1 else ""
    is_title = 0 < count_words(first) <= MAX_TITLE_WORDS and not first.endswith(_SENTENCE_ENDS)
    return (first, [Section("", paragraphs[1:])]) if is_title else ("", [Section("", paragraphs)])
