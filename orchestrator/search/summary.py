"""A summary as its reader sees it: what was found, checked text, what each sentence rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrator.generation import Delta, Finish, FinishReason, Usage
from orchestrator.search.grounding.citations import cited
from orchestrator.search.grounding.grounding import Citation, ground
from orchestrator.search.markup import clean
from orchestrator.search.retrieval import Result
from orchestrator.search.summary_text import SummaryText

NOTHING_SEARCHED = "The documents could not be searched just now, so there is no answer."
"""The whole summary where the search failed: no model is asked what it cannot know."""

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_SAFE_SCHEMES = frozenset(("http", "https", "ftp", "file", "urn", "doi"))


class Question(NamedTuple):
    """A search, and how its summary is to be."""

    query: str
    num_results: int
    max_tokens: int
    model: str = ""
    safe_search: bool = False


class Source(NamedTuple):
    """A passage that was found, as it may be shown; citations use its position."""

    position: int
    title: str
    url: str
    snippet: str
    """The whole passage; spans of citations count its characters."""
    score: float


class Found(NamedTuple):
    """What a search found; the first event of a summary."""

    query: str
    sources: Sequence[Source]


class SummaryFinish(NamedTuple):
    """The end of a summary."""

    reason: FinishReason
    usage: Usage
    citations: Sequence[int] = ()
    """Positions that the text cites, ascending, each once."""
    details: Sequence[Citation] = ()
    """Sentence by sentence."""


def as_sources(results: Sequence[Result]) -> list[Source]:
    """The results, numbered, without anything that a browser would take for markup or code."""
    return [
        Source(
            position=position,
            title=clean(" ".join(result.title.split())),
            url=_safe_url(result.url),
            snippet=clean(" ".join(result.text.split())),
            score=result.score,
        )
        for position, result in enumerate(results, 1)
    ]


def _safe_url(url: str) -> str:
    scheme = _SCHEME.match(url)
    safe = scheme is None or scheme[1].lower() in _SAFE_SCHEMES
    return "".join(url.split()) if safe and url.isprintable() else ""


class Summary:
    """One summary: deltas of the model go in, what may be shown comes out."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self.give(())
        # Tokens of text that is still held back.
        self._num_held = 0

    def give(self, sources: Sequence[Source]) -> None:
        """Before the first delta: the sources in the prompt, which may be cited; none at first."""
        self._snippets = {source.position: source.snippet for source in sources}
        self._text = SummaryText(self._snippets, self._max_characters)

    @property
    def full(self) -> bool:
        """Whether the text is as long as it may be; nothing more will come out."""
        return self._text.full

    def push(self, delta: Delta) -> Iterator[Delta]:
        """What can be shown of it, and of what was held back."""
        yield from self._delta(self._text.push(delta.text), delta.num_tokens)

    def finish(self, finish: Finish) -> Iterator[Delta | SummaryFinish]:
        """What was held back, then the end."""
        yield from self._delta(self._text.flush(), 0)
        reason = FinishReason.LENGTH if self.full else finish.reason
        text = self._text.text
        yield SummaryFinish(reason, finish.usage, cited(text), ground(text, self._snippets))

    def _delta(self, text: str, num_tokens: int) -> Iterator[Delta]:
        self._num_held += num_tokens
        if text:
            yield Delta(text, self._num_held)
            self._num_held = 0
