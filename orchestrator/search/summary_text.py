"""The checks that a summary passes on its way out, while it is being written."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.search.grounding.citations import CitationFilter
from orchestrator.search.markup import MarkupEscape, without_control_characters


class SummaryText:
    """A model's text goes in by `push`, and comes out as it may be shown.

    length ─▶ control characters ─▶ citations ─▶ markup

    Each step holds back what it cannot judge yet, so nothing that came out is withdrawn.
    """

    def __init__(self, given: Collection[int], max_characters: int) -> None:
        """`given` holds the numbers of the passages that may be cited."""
        self._citations = CitationFilter(given)
        self._markup = MarkupEscape()
        self._room = max_characters
        self._shown: list[str] = []

    @property
    def full(self) -> bool:
        """Whether the text was longer than it may be; what is too much is left out."""
        return self._room < 0

    @property
    def text(self) -> str:
        """All that came out so far."""
        return "".join(self._shown)

    def push(self, text: str) -> str:
        """Takes more text, gives what can be shown."""
        kept = text[: max(self._room, 0)]
        self._room -= len(text)
        kept = without_control_characters(kept)
        return self._show(self._markup.push(self._citations.push(kept)))

    def flush(self) -> str:
        """What was held back; at the end of the text."""
        rest = self._markup.push(self._citations.flush())
        return self._show(rest + self._markup.flush())

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text
