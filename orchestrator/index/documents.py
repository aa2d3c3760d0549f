"""Parses documents into a title and passages of plain prose; the file's suffix is its format.

Navigation is left out. Each row of a table becomes a sentence; code is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bs4 import BeautifulSoup
from bs4.element import NavigableString, Tag
from markdown_it import MarkdownIt

from orchestrator.index.formats import (
    MAX_TABLE_COLUMNS,
    Content,
    Section,
    UnreadableDocument,
    decode,
    read_docx,
    read_pdf,
    read_table,
    row_sentences,
)
from orchestrator.index.html_tree import HtmlTree
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.language.languages import detect_language
from orchestrator.search.language.words import count_words
from orchestrator.search.retrieval import MAX_TITLE_CHARACTERS, MAX_URL_CHARACTERS

MARKDOWN, HTML, TABLES = (".md", ".markdown"), (".html", ".htm"), (".csv", ".tsv")
SUFFIXES = (*MARKDOWN, ".txt", ".text", *HTML, *TABLES, ".pdf", ".docx")

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

MAX_CELL_CHARACTERS = 300
"""Longest text of a cell in a table of data; longer ones lay out a page."""

MIN_ARTICLE = 250
"""Characters of an article that is taken out of a web page; shorter pages are kept as a whole."""

OVERLAP_SENTENCES = 1
"""Number of sentences that two consecutive passages share."""

_NOT_PROSE = ("script", "style", "nav", "header", "footer", "aside", "form", "svg")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_BLOCKS = (
    *_HEADINGS, "p", "li", "blockquote", "dd", "dt", "div", "section", "article", "main", "body",
    "pre", "td", "th",
)  # fmt: skip
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


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
    properties, (title, sections) = _read(path.suffix.lower(), content)
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


def _read(suffix: str, content: bytes) -> tuple[dict[str, str], Content]:
    """The front matter and the content of a file. Raises UnreadableDocument."""
    if suffix == ".pdf":
        return {}, read_pdf(content)
    if suffix == ".docx":
        return {}, read_docx(content)
    text = decode(content, is_html=suffix in HTML).replace("\r\n", "\n")
    if suffix in TABLES:
        return {}, read_table(text)
    if suffix in HTML:
        return {}, _article(text)
    properties, text = _front_matter(text)
    return properties, _markdown(text) if suffix in MARKDOWN else _plain(text)


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


def _article(text: str) -> Content:
    """A web page without its boilerplate, if trafilatura is installed and finds the article."""
    page = _html(text)
    try:
        from trafilatura import extract
    except ImportError:
        return page
    soup = HtmlTree(text)
    for element in soup(_NOT_PROSE):
        element.decompose()
    article = extract(
        str(soup), output_format="html", include_formatting=True, include_tables=True,
        include_comments=False, favor_recall=True,
    )  # fmt: skip
    content = _html(article or "")
    # It takes any text of a short page, navigation too.
    if sum(len(each) for section in content.sections for each in section.paragraphs) < MIN_ARTICLE:
        return page
    return Content(page.title or content.title, content.sections)


def _markdown(text: str) -> Content:
    # Embedded HTML is rendered as HTML, so that its tags and comments are removed too.
    return _html(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def _html(text: str) -> Content:
    soup = HtmlTree(text)
    page_title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup([*_NOT_PROSE, "title"]):
        element.decompose()
    for table in soup("table"):
        _replace_table(table)
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
    return Content(title or page_title, [Section(heading, prose) for heading, prose in sections])


def _replace_table(table: Tag) -> None:
    """Replaces a table of data by a paragraph for each row; one that only lays out stays."""
    rows = [row.find_all(["th", "td"]) for row in table("tr")]
    texts = [[" ".join(cell.get_text(" ").split()) for cell in row] for row in rows]
    is_data = (
        len(texts) > 1
        and 1 < max(map(len, texts)) <= MAX_TABLE_COLUMNS
        and table.find("table") is None
        and all(len(text) <= MAX_CELL_CHARACTERS for row in texts for text in row)
    )
    if not is_data:
        return
    for sentence in row_sentences(texts):
        paragraph = BeautifulSoup("<p></p>", "html.parser").p
        assert paragraph is not None
        paragraph.string = sentence
        table.insert_before(paragraph)
    table.decompose()


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


def _plain(text: str) -> Content:
    paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    paragraphs = list(filter(None, paragraphs))
    first = paragraphs[0] if len(paragraphs) > 1 else ""
    is_title = 0 < count_words(first) <= MAX_TITLE_WORDS and not first.endswith(_SENTENCE_ENDS)
    if is_title:
        return Content(first, [Section("", paragraphs[1:])])
    return Content("", [Section("", paragraphs)])
