"""Citations in a summary that is still being written: `[n]`, or several as `[1, 2]`.

A number that stands for no passage of the prompt is removed before anybody sees it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_CHARACTERS = 40
"""Between the brackets. Whatever is longer is no citation; so much at most is held back."""

MAX_SPACES = 8
"""Before a citation that is removed, so many go with it."""

CITATION = re.compile(rf"\[[ \t,]*[0-9][0-9 \t,]{{0,{MAX_CHARACTERS - 1}}}\]")
"""One citation, with whatever numbers."""

_SPACED = re.compile(rf"[ \t]{{0,{MAX_SPACES}}}(?P<citation>{CITATION.pattern})")
# Brackets may be nested: where an inner citation goes, what is around it may become one.
_UNFINISHED = re.compile(
    rf"[ \t]{{0,{MAX_SPACES}}}(?:\[[0-9 \t,]{{0,{MAX_CHARACTERS + MAX_SPACES}}})*\Z"
)
_NUMBER = re.compile("[0-9]+")


def numbers_in(citation: str) -> list[int]:
    """The numbers between the brackets, as they stand there."""
    return [int(number) for number in _NUMBER.findall(citation)]


def cited(text: str) -> list[int]:
    """The numbers that `text` cites, ascending, each once."""
    citations = CITATION.findall(text)
    return sorted({number for each in citations for number in numbers_in(each)})


class CitationFilter:
    """Text goes in by `push`, and comes out without citations of what was not given.

    What may become a citation is held back until it is one, or none; so nothing that came out
    is ever withdrawn. The concatenated output is the same however the text was cut.
    """

    def __init__(self, given: Collection[int]) -> None:
        self._given = given
        self._held = ""

    def push(self, text: str) -> str:
        """Takes more text, gives what can be shown."""
        shown, self._held = self._checked(self._held + text)
        unfinished = _UNFINISHED.search(self._held)
        assert unfinished is not None, "the pattern matches nothing at all as well"
        begin = unfinished.start()
        shown, self._held = shown + self._held[:begin], self._held[begin:]
        return shown

    def flush(self) -> str:
        """What was held back and turned out to be none; at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _checked(self, text: str) -> tuple[str, str]:
        """What is settled, up to the last good citation; and the rest, without bad ones."""
        shown = ""
        while found := _SPACED.search(text):
            citation = found["citation"]
            good = [number for number in numbers_in(citation) if number in self._given]
            if good and len(good) == len(numbers_in(citation)):
                shown, text = shown + text[: found.end()], text[found.end() :]
                continue
            # What remains around it is looked at again: it may be a citation in its turn.
            spaces = text[found.start() : found.start("citation")]
            kept = f"{spaces}[{', '.join(map(str, good))}]" if good else ""
            text = text[: found.start()] + kept + text[found.end() :]
        return shown, text
