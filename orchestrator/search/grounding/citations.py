"""Citations in a streamed summary: `[n]`, or several as `[1, 2]`.

Numbers that refer to no passage of the prompt are removed before the text is returned.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_CHARACTERS = 40
"""Maximum characters between the brackets of a citation."""

MAX_SPACES = 8
"""Maximum spaces removed together with the citation that follows them."""

CITATION = re.compile(rf"\[(?=[^\]]{{1,{MAX_CHARACTERS}}}\])[ \t,]*[0-9][0-9 \t,]*\]")
"""One citation, with any numbers."""

_PIECE = re.compile(r"[\[\]]|[0-9 \t,]+|[^\[\]0-9 \t,]+")
_NUMBER = re.compile("[0-9]+")
_INSIDE = frozenset("0123456789 \t,")


def citation_numbers(citation: str) -> list[int]:
    """The numbers of one citation, in their order."""
    return [int(number) for number in _NUMBER.findall(citation)]


def cited_numbers(text: str) -> list[int]:
    """The numbers that `text` cites, in ascending order, without duplicates."""
    citations = CITATION.findall(text)
    return sorted({number for each in citations for number in citation_numbers(each)})


class CitationFilter:
    """Removes citations of numbers that are not allowed from a stream of text.

    Holds back text that may become a citation until it is complete, so text that was returned is
    never revised. Brackets may be nested: removing an inner citation can turn the text around it
    into one. The output does not depend on how the text is split, and takes linear time.
    """

    def __init__(self, allowed: Collection[int]) -> None:
        """`allowed` are the numbers of the passages in the prompt."""
        self._allowed = allowed
        self._held = [""]
        """Spaces, then each bracket that is open, with the digits, spaces and commas after it."""
        self._checked: list[str] = []

    def push(self, text: str) -> str:
        """Adds text; returns the text that later text can no longer change."""
        for piece in _PIECE.findall(text):
            if piece == "[":
                self._held.append(piece)
            elif piece == "]":
                self._close()
            elif piece[0] in _INSIDE:
                self._extend(piece)
            else:
                self._release(piece)
        return self._take()

    def flush(self) -> str:
        """Returns the text held back, which is no citation; call it at the end of the stream."""
        self._release("")
        return self._take() + self._held.pop()

    def _extend(self, piece: str) -> None:
        """Adds digits, spaces and commas to the innermost open bracket, or to plain text."""
        self._held[-1] += piece
        # An inner citation is removed with the spaces before it, which shortens this one.
        if len(self._held) == 1 or len(self._held[-1]) > 1 + MAX_CHARACTERS + MAX_SPACES:
            self._release("")

    def _close(self) -> None:
        """Ends the innermost open bracket, and removes or returns its citation if it is one."""
        citation = self._held[-1] + "]"
        if not CITATION.fullmatch(citation):
            self._release("]")
            return
        numbers = citation_numbers(self._held.pop())
        valid = [number for number in numbers if number in self._allowed]
        if valid and len(valid) == len(numbers):
            self._release(citation)
            return
        before = self._held[-1]
        kept = before.rstrip(" \t")
        kept = before[: max(len(kept), len(before) - MAX_SPACES)]
        if valid:
            self._release(f"[{', '.join(map(str, valid))}]")
        else:
            self._held[-1] = kept

    def _release(self, text: str) -> None:
        """Marks what is held and then `text` as checked, except for the spaces at its end."""
        released = "".join(self._held) + text
        spaces = released[-MAX_SPACES:]
        spaces = spaces[len(spaces.rstrip(" \t")) :]
        self._checked.append(released[: len(released) - len(spaces)])
        self._held = [spaces]

    def _take(self) -> str:
        checked = "".join(self._checked)
        self._checked.clear()
        return checked
