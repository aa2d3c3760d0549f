"""Stop strings in a stream equal a search in the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.text.stop_strings import StopStrings

WORDS = st.text(alphabet="ab😀", max_size=5)


@given(
    chunks=st.lists(WORDS, max_size=12),
    stop=st.lists(st.text(alphabet="ab😀", min_size=1, max_size=4), max_size=4),
)
def test_the_text_ends_before_the_first_stop_string(chunks: list[str], stop: list[str]) -> None:
    """For any split, the output is the text before the match that is complete first."""
    stops = StopStrings(stop)
    shown = [stops.push(chunk) for chunk in chunks]
    text = "".join(chunks)
    matches = [(start + len(each), start, each) for each in stop if (start := text.find(each)) >= 0]
    _, end, matched = min(matches, default=(0, len(text), ""))
    assert "".join(shown) + stops.flush() == text[:end]
    assert stops.matched == matched


@given(
    skipped=st.lists(WORDS, max_size=4),
    chunks=st.lists(WORDS, max_size=8),
    stop=st.lists(st.text(alphabet="ab😀", min_size=1, max_size=4), max_size=4),
)
def test_no_stop_string_ends_in_skipped_text(
    skipped: list[str], chunks: list[str], stop: list[str]
) -> None:
    """One that begins in it and ends later counts."""
    stops = StopStrings(stop)
    shown = [stops.skip(chunk) for chunk in skipped] + [stops.push(chunk) for chunk in chunks]
    held_off, text = len("".join(skipped)), "".join(skipped + chunks)
    matches = [
        (at + len(each), at)
        for each in stop
        for at in range(len(text))
        if text.startswith(each, at) and at + len(each) > held_off
    ]
    _, end = min(matches, default=(0, len(text)))
    assert "".join(shown) + stops.flush() == text[:end]


def test_overlapping_stop_strings_do_not_depend_on_the_split() -> None:
    """A longer one that begins earlier does not win because it arrived at once."""
    for chunks in (["bab"], ["b", "a", "b"], ["ba", "b"]):
        stops = StopStrings(["bab", "a"])
        assert "".join(stops.push(chunk) for chunk in chunks) == "b"


def test_what_may_become_a_stop_string_is_held_back() -> None:
    """No part of a stop string is returned."""
    stops = StopStrings(["</end>"])
    assert stops.push("abc</e") == "abc"
    assert stops.push("nd") == ""
    assert stops.push("ing") == "</ending"
    assert stops.push("x</end>y") == "x"
    assert stops.push("z") == ""


def test_without_stop_strings_nothing_is_held_back() -> None:
    """All text passes at once."""
    stops = StopStrings([])
    assert stops.push("anything") == "anything"
    assert stops.flush() == ""
