"""The events of a summary: search results, filtered text, and a finish with its citations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.search import Source
from mesh.protocol.usage import Usage
from orchestrator.search.grounding.citations import cited_numbers
from orchestrator.search.grounding.grounding import Citation, ground
from orchestrator.search.markup import sanitize
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.summary_filter import SummaryFilter

RETRIEVAL_FAILED = "The documents could not be searched just now, so there is no answer."
"""The whole summary after a failed retrieval; the model is not run without sources."""

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")
_SAFE_SCHEMES = frozenset(("http", "https", "ftp", "file", "urn", "doi"))


class SearchRequest(NamedTuple):
    """A search query, and the parameters of its results and summary."""

    query: str
    num_results: int
    max_tokens: int
    model: str = ""
    safe_search: bool = False


class SummaryFinish(NamedTuple):
    """The last event of a summary."""

    reason: FinishReason
    usage: Usage
    citations: Sequence[int] = ()
    """Positions of the cited sources, in ascending order, without duplicates."""
    details: Sequence[Citation] = ()
    """The citations of each sentence."""
    num_resumptions: int = 0
    failover_causes: Sequence[str] = ()


def to_sources(results: Sequence[SearchResult]) -> list[Source]:
    """Numbers the results from 1 and removes markup and unsafe URLs."""
    return [
        Source(
            position=position,
            title=sanitize(" ".join(result.title.split())),
            url=_safe_url(result.url),
            snippet=sanitize(" ".join(result.text.split())),
            score=result.score,
        )
        for position, result in enumerate(results, 1)
    ]


def _safe_url(url: str) -> str:
    scheme = _SCHEME.match(url)
    safe = scheme is None or scheme[1].lower() in _SAFE_SCHEMES
    return "".join(url.split()) if safe and url.isprintable() else ""


class SummaryAssembler:
    """Turns the model's deltas into filtered deltas and a finish with grounded citations."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self.set_sources(())
        # Tokens of text that the filter holds back.
        self._num_held = 0

    def set_sources(self, sources: Sequence[Source]) -> None:
        """Sets the sources in the prompt, which the summary may cite; call it before `push`."""
        self._snippets = {source.position: source.snippet for source in sources}
        self._filter = SummaryFilter(self._snippets, self._max_characters)

    @property
    def reached_limit(self) -> bool:
        """Whether the text exceeded `max_characters`; `push` returns no more text then."""
        return self._filter.reached_limit

    def push(self, delta: Delta) -> Iterator[Delta]:
        """Adds a delta; yields the text that has passed the filter."""
        yield from self._delta(self._filter.push(delta.text), delta.num_tokens)

    def finish(self, finish: GenerationFinish) -> Iterator[Delta | SummaryFinish]:
        """Yields the text that was held back, then the summary's finish."""
        yield from self._delta(self._filter.flush(), 0)
        reason = FinishReason.LENGTH if self.reached_limit else finish.reason
        text = self._filter.text
        details = ground(text, self._snippets)
        yield SummaryFinish(
            reason,
            finish.usage,
            cited_numbers(text),
            details,
            finish.num_resumptions,
            finish.failover_causes,
        )

    def _delta(self, text: str, num_tokens: int) -> Iterator[Delta]:
        self._num_held += num_tokens
        if text:
            yield Delta(text, self._num_held)
            self._num_held = 0
