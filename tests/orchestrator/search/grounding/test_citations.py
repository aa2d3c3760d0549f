"""The citation filter removes unknown numbers, however the stream is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.grounding.citations import CitationFilter, citation_numbers, cited_numbers


def filtered(pieces: list[str], allowed: tuple[int, ...] = (1, 2)) -> tuple[str, list[str]]:
    """The whole output, and the output after each push."""
    filter_ = CitationFilter(allowed)
    out = [filter_.push(piece) for piece in pieces]
    return "".join(out) + filter_.flush(), out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Good [1].", "Good [1]."),
        ("Bad [3].", "Bad."),
        ("Both [1][3][2].", "Both [1][2]."),
        ("A list [1, 2].", "A list [1, 2]."),
        ("A list [1, 3].", "A list [1]."),
        ("A list [3,4].", "A list."),
        ("Zero [0], long [123456789].", "Zero, long."),
        ("Nested [[3]9].", "Nested."),
        ("Nested [[3]1].", "Nested [1]."),
        ("None [a], [], [ ], [1a], [,].", "None [a], [], [ ], [1a], [,]."),
        ("Ends [", "Ends ["),
        ("Ends [3", "Ends [3"),
        ("Line\n[3]\nline", "Line\n\nline"),
        ("[3] First.", " First."),
    ],
)
def test_numbers_that_are_not_allowed_are_removed(text: str, shown: str) -> None:
    """The spaces before them too, whether the text is pushed whole or by character."""
    assert filtered([text])[0] == shown
    assert filtered(list(text))[0] == shown


def test_only_a_possible_citation_is_held_back() -> None:
    """Other text is returned at once; an opening bracket is held back until it closes."""
    pieces = ["A", " word", " [", "1", "]", " and", " [3", "]", " x [y"]
    assert filtered(pieces)[1] == ["A", " word", "", "", " [1]", " and", "", "", " x [y"]


def test_the_held_back_text_is_bounded() -> None:
    """A bracket that never closes delays the text only by a few characters."""
    text = "[" + "1 " * 500
    filter_ = CitationFilter((1,))
    shown = ""
    for count, character in enumerate(text, 1):
        shown += filter_.push(character)
        assert count - len(shown) <= 60
    assert shown + filter_.flush() == text


PIECES = st.lists(st.text("[]0123 ,a\n\t", max_size=6), max_size=30)


@given(pieces=PIECES)
def test_the_output_does_not_depend_on_splitting(pieces: list[str]) -> None:
    """The output cites allowed numbers only."""
    shown, out = filtered(pieces)
    text = "".join(pieces)
    assert shown == filtered([text])[0] == filtered(list(text))[0]
    assert set(cited_numbers(shown)) <= {1, 2}
    assert shown.startswith("".join(out))


def test_cited_numbers_are_distinct_and_sorted() -> None:
    """As in the field `citations` of the event `complete`."""
    assert cited_numbers("Two [2] and one [1], two again [2], three [3, 1].") == [1, 2, 3]
    assert cited_numbers("No citation, x[a] and [] are none.") == []
    assert citation_numbers("[3, 1]") == [3, 1]
