"""Text that is safe to be shown, piece by piece."""

from __future__ import annotations

import unicodedata
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.markup import MarkupEscape, clean, escape, without_control_characters
from orchestrator.search.summary_text import SummaryText


def escaped(pieces: list[str]) -> str:
    """What comes out of a stream of pieces."""
    stream = MarkupEscape()
    return "".join(map(stream.push, pieces)) + stream.flush()


class Tags(HTMLParser):
    """Notes everything that is markup."""

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
    """Prose stays as it is."""
    assert escaped([text]) == escaped(list(text)) == escape(text) == shown


@given(pieces=st.lists(st.text("<>&;#x/!ab0lt ?copy\n", max_size=6) | st.text(max_size=3)))
def test_a_browser_shows_what_was_written(pieces: list[str]) -> None:
    """No tag is left, references decode to the original, and the cuts do not matter."""
    text = without_control_characters("".join(pieces)).replace("\r", "")
    shown = escaped([text])
    assert shown == escaped(list(text)) == escape(text)
    assert unescape(shown) == text
    parser = Tags()
    parser.feed(shown)
    parser.close()
    assert parser.found == []


@given(text=st.text())
def test_no_control_character_comes_out(text: str) -> None:
    """But line ends and tabs; nothing else is lost."""
    shown = without_control_characters(text)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in shown)
    kept = [c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cn")]
    assert [c for c in shown if unicodedata.category(c) not in ("Cc", "Cf", "Cn")] == kept


def test_what_hides_or_turns_text_is_removed() -> None:
    """Terminal sequences, reversed text and characters that are none; joiners stay."""
    assert clean("a\x1b[31mb\u202ec\ufffed\x00\x85") == "a[31mbcd"
    assert clean("👩\u200d🔬 שלום\u200f") == "👩\u200d🔬 שלום\u200f"


@given(pieces=st.lists(st.text("<>&b[]12 a\x00", max_size=5), max_size=30), room=st.integers(0, 60))
def test_all_checks_together_do_not_depend_on_the_cuts(pieces: list[str], room: int) -> None:
    """The text is the same in one piece and in many, and cut where it is too long."""
    text = "".join(pieces)
    streams = [SummaryText((1,), room), SummaryText((1,), room)]
    shown = "".join(map(streams[0].push, pieces)) + streams[0].flush()
    assert shown == streams[1].push(text) + streams[1].flush() == streams[0].text
    assert len(unescape(shown)) <= room
    assert streams[0].full is (len(text) > room)
