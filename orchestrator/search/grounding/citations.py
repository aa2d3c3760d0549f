"""Citations in a streamed summary: `[n]`, or several as `[1, 2]`.

Numbers that refer to no passage of the prompt are removed before the text is returned.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_CHARACTERS = 40
"""Maximum characters between the brackets of a citation; bounds the text that is held back."""

MAX_SPACES = 8
"""Maximum spaces removed together with the citation that follows them."""

CITATION = re.compile(rf"\[[ \t,]*[0-9][0-9 \t,]{{0,{MAX_CHARACTERS - 1}}}\]")
"""One citation, with any numbers."""

_SPACED = re.compile(rf"[ \t]{{0,{MAX_SPACES}}}(?P<citation>{CITATION.pattern})")
# Brackets may be nested: removing an inner citation can turn the text around it into one.
_INCOMPLETE = re.compile(
    rf"[ \t]{{0,{MAX_SPACES}}}(?:\[[0-9 \t,]{{0,{MAX_CHARACTERS + MAX_SPACES}}})*\Z"
)
_NUMBER = re.compile("[0-9]+")


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
    never revised. The concatenated output does not depend on how the text is split.
    """

    def __init__(self, allowed: Collection[int]) -> None:
        """`allowed` are the numbers of the passages in the prompt."""
        self._allowed = allowed
        self._held = ""

    def push(self, text: str) -> str:
        """Adds text; returns the text that later text can no longer change."""
        checked, self._held = self._check(self._held + text)
        incomplete = _INCOMPLETE.search(self._held)
        assert incomplete is not None, "the pattern matches the empty string too"
        begin = incomplete.start()
        checked, self._held = checked + self._held[:begin], self._held[begin:]
        return checked

    def flush(self) -> str:
        """Returns the text held back, which is no citation; call it at the end of the stream."""
        held, self._held = self._held, ""
        return held

    def _check(self, text: str) -> tuple[str, str]:
        """Splits after the last valid citation; removes invalid citations from the second part."""
        checked = ""
        while match := _SPACED.search(text):
            numbers = citation_numbers(match["citation"])
            valid = [number for number in numbers if number in self._allowed]
            if valid and len(valid) == len(numbers):
                checked, text = checked + text[: match.end()], text[match.end() :]
                continue
            # The text around the removed citation is searched again: it may form a new one.
            spaces = text[match.start() : match.start("citation")]
            kept = f"{spaces}[{', '.join(map(str, valid))}]" if valid else ""
            text = text[: match.start()] + kept + text[match.end() :]
        return checked, text
