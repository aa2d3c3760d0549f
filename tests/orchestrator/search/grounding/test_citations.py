"""Citations of what was not given never come out, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.grounding.citations import CitationFilter, cited, numbers_in


def filtered(pieces: list[str], given: tuple[int, ...] = (1, 2)) -> tuple[str, list[str]]:
    """The whole output, and what came out after each piece."""
    filter_ = CitationFilter(given)
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
def test_numbers_that_were_not_given_are_removed(text: str, shown: str) -> None:
    """With the spaces before them, whole and letter by letter."""
    assert filtered([text])[0] == shown
    assert filtered(list(text))[0] == shown


def test_only_what_may_be_a_citation_is_held_back() -> None:
    """Text goes through at once; an opening bracket waits for its end."""
    pieces = ["A", " word", " [", "1", "]", " and", " [3", "]", " x [y"]
    assert filtered(pieces)[1] == ["A", " word", "", "", " [1]", " and", "", "", " x [y"]


def test_what_is_held_back_is_bounded() -> None:
    """A bracket that never closes does not hold up the text for ever."""
    text = "[" + "1 " * 500
    filter_ = CitationFilter((1,))
    shown = ""
    for count, character in enumerate(text, 1):
        shown += filter_.push(character)
        assert count - len(shown) <= 60
    assert shown + filter_.flush() == text


PIECES = st.lists(st.text("[]0123 ,a\n\t", max_size=6), max_size=30)


@given(pieces=PIECES)
def test_the_output_does_not_depend_on_the_cuts(pieces: list[str]) -> None:
    """And cites nothing that was not given."""
    shown, out = filtered(pieces)
    text = "".join(pieces)
    assert shown == filtered([text])[0] == filtered(list(text))[0]
    assert set(cited(shown)) <= {1, 2}
    assert shown.startswith("".join(out))


def test_citations_are_listed_once_and_in_order() -> None:
    """As `complete` carries them."""
    assert cited("Two [2] and one [1], two again [2], three [3, 1].") == [1, 2, 3]
    assert cited("No citation, x[a] and [] are none.") == []
    assert numbers_in("[3, 1]") == [3, 1]
