"""The events of a summary: search results, filtered text, and a finish with its citations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.search import Source
from mesh.protocol.summary import Grounded, SummaryFinish, Turn
from orchestrator.generation import Progress
from orchestrator.search.grounding.citations import cited_numbers
from orchestrator.search.grounding.grounding import ground
from orchestrator.search.markup import sanitize
from orchestrator.search.prompt import NOTHING_FOUND
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
    grounded: Grounded = Grounded.QUOTE
    history: Sequence[Turn] = ()
    max_searches: int = 1
    num_related: int = 0

    @property
    def is_rewritten(self) -> bool:
        """Whether the query is rewritten before it is searched for."""
        return bool(self.history) or self.max_searches > 1

    @property
    def reports_status(self) -> bool:
        """Whether the client knows the events of a conversation."""
        return self.is_rewritten or self.num_related > 0


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

    def __init__(self, max_characters: int, grounded: Grounded) -> None:
        self._max_characters = max_characters
        self._grounded = grounded
        self.set_sources(())
        self._put_back: list[Delta] = []
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

    def read(self, messages: Sequence[Progress]) -> Iterator[Delta]:
        """Adds the deltas of messages; yields the text that has passed the filter."""
        put_back, self._put_back = self._put_back, []
        yield from put_back
        for message in messages:
            if message.delta is not None:
                yield from self.push(message.delta)

    def put_back(self, deltas: Sequence[Delta]) -> None:
        """Lets `read` return deltas again, which could not be sent."""
        self._put_back += deltas

    def finish(self, finish: GenerationFinish) -> Iterator[Delta | SummaryFinish]:
        """Yields the text that was held back, then the summary's finish."""
        yield from self._delta(self._filter.flush(), 0)
        reason = FinishReason.LENGTH if self.reached_limit else finish.reason
        text = self._filter.text
        is_quoted = self._grounded is Grounded.QUOTE
        details = ground(text, self._snippets, quoted=is_quoted)
        attributed = {each.number for each in details if each.attributed and each.number}
        yield SummaryFinish(
            reason,
            finish.usage,
            num_resumptions=finish.num_resumptions,
            failover_causes=finish.failover_causes,
            citations=sorted(attributed.union(cited_numbers(text))),
            citation_details=details,
            nothing_found=text.strip() == NOTHING_FOUND,
        )

    def _delta(self, text: str, num_tokens: int) -> Iterator[Delta]:
        self._num_held += num_tokens
        if text:
            yield Delta(text, self._num_held)
            self._num_held = 0
