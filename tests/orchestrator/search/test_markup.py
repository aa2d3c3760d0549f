"""Sanitizing text for display, as a whole and as a stream."""

from __future__ import annotations

import unicodedata
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.markup import MarkupEscaper, escape, sanitize, strip_control_characters
from orchestrator.search.summary_filter import SummaryFilter


def escaped(pieces: list[str]) -> str:
    """The concatenated output of a `MarkupEscaper`."""
    stream = MarkupEscaper()
    return "".join(map(stream.push, pieces)) + stream.flush()


class Tags(HTMLParser):
    """Collects all markup that an HTML parser finds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        self.found.append(data)

    def handle_decl(self, decl: str) -> None:
        self.found.append(decl)

    def handle_pi(self, data: str) -> None:
        self.found.append(data)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a < b & c > d, R&D, AT&T", "a < b & c > d, R&D, AT&T"),
        ("<script>x()</script>", "&lt;script>x()&lt;/script>"),
        ("<!-- x --><?php", "&lt;!-- x -->&lt;?php"),
        ("&lt;b> &copy 1 &#60; &#x3c", "&amp;lt;b> &amp;copy 1 &amp;#60; &amp;#x3c"),
        ("ends <", "ends <"),
        ("ends &am", "ends &am"),
        ("ends &amp", "ends &amp;amp"),
        ("<<b>", "<&lt;b>"),
    ],
)
def test_only_markup_is_escaped(text: str, shown: str) -> None:
    """Prose passes unchanged."""
    assert escaped([text]) == escaped(list(text)) == escape(text) == shown


@given(pieces=st.lists(st.text("<>&;#x/!ab0lt ?copy\n", max_size=6) | st.text(max_size=3)))
def test_escaped_text_renders_as_the_original(pieces: list[str]) -> None:
    """No tag remains, references decode to the original, and splitting does not matter."""
    text = strip_control_characters("".join(pieces)).replace("\r", "")
    shown = escaped([text])
    assert shown == escaped(list(text)) == escape(text)
    assert unescape(shown) == text
    parser = Tags()
    parser.feed(shown)
    parser.close()
    assert parser.found == []


@given(text=st.text())
def test_control_characters_are_removed(text: str) -> None:
    """Except line feeds and tabs; all other characters are kept."""
    shown = strip_control_characters(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    kept = [c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cn")]
    assert [c for c in shown if unicodedata.category(c) not in ("Cc", "Cf", "Cn")] == kept


def test_escape_sequences_and_bidi_overrides_are_removed() -> None:
    """Terminal escapes, bidirectional overrides and noncharacters are removed; joiners stay."""
    assert sanitize("a\x1b[31mb\u202ec\ufffed\x00\x85") == "a[31mbcd"
    assert sanitize("👩\u200d🔬 שלום\u200f") == "👩\u200d🔬 שלום\u200f"


@given(
    pieces=st.lists(st.text("<>&b[]12 a\x00", max_size=5), max_size=30), limit=st.integers(0, 60)
)
def test_the_filter_does_not_depend_on_splitting(pieces: list[str], limit: int) -> None:
    """All stages together give the same text for any splitting, truncated at the limit."""
    text = "".join(pieces)
    streams = [SummaryFilter((1,), limit), SummaryFilter((1,), limit)]
    shown = "".join(map(streams[0].push, pieces)) + streams[0].flush()
    assert shown == streams[1].push(text) + streams[1].flush() == streams[0].text
    assert len(unescape(shown)) <= limit
    assert streams[0].reached_limit is (len(text) > limit)
