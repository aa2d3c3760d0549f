"""Filters the text of a summary while it is generated."""

from __future__ import annotations

from collections.abc import Collection

from orchestrator.search.grounding.citations import CitationFilter
from orchestrator.search.markup import MarkupEscaper, strip_control_characters


class SummaryFilter:
    """Makes a model's text safe to display, in four stages:

    length ─▶ control characters ─▶ citations ─▶ markup

    A stage holds back text that it cannot judge yet, so text that was returned is never revised.
    """

    def __init__(self, allowed: Collection[int], max_characters: int) -> None:
        """`allowed` are the numbers of the passages that the text may cite."""
        self._citations = CitationFilter(allowed)
        self._markup = MarkupEscaper()
        self._num_remaining = max_characters
        self._returned: list[str] = []

    @property
    def reached_limit(self) -> bool:
        """Whether the text exceeded `max_characters`; the excess is dropped."""
        return self._num_remaining < 0

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._returned)

    def push(self, text: str) -> str:
        """Adds text; returns the text that has passed all stages."""
        kept = text[: max(self._num_remaining, 0)]
        self._num_remaining -= len(text)
        kept = strip_control_characters(kept)
        return self._record(self._markup.push(self._citations.push(kept)))

    def flush(self) -> str:
        """Returns the text held back; call it once, at the end of the stream."""
        rest = self._markup.push(self._citations.flush())
        return self._record(rest + self._markup.flush())

    def _record(self, text: str) -> str:
        if text:
            self._returned.append(text)
        return text
