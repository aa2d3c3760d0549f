"""What the list of traces shows: filters by text, outcome and duration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from scripts.traceview.spans import Summary

MAX_TEXT_CHARACTERS = 200

FAILOVERS = "failovers"
"""Value of the filter by outcome: all traces with a failover, whatever their outcome."""


class Searchable(Protocol):
    """A trace whose text is made when it is needed."""

    @property
    def text(self) -> str:
        """In lower case."""
        ...


class Query(NamedTuple):
    """Filters, all of which apply."""

    words: tuple[str, ...] = ()
    """In lower case; each must occur in the trace."""
    outcome: str = ""
    """An outcome, or `FAILOVERS`; empty: any."""
    min_ms: float = 0.0
    max_ms: float = math.inf

    def matches_text(self, trace: Searchable) -> bool:
        """Whether all words occur."""
        return not self.words or all(word in trace.text for word in self.words)

    def matches_duration(self, trace: Summary) -> bool:
        """Whether the duration is within the bounds, both included."""
        return self.min_ms <= trace.duration / 1e6 <= self.max_ms

    def matches_outcome(self, trace: Summary) -> bool:
        """Whether the outcome is the wanted one."""
        if self.outcome == FAILOVERS:
            return trace.num_failovers > 0
        return self.outcome in ("", trace.outcome)


class Found(NamedTuple):
    """The result of a query."""

    traces: Sequence[Summary]
    """Newest first."""
    outcomes: Mapping[str, int]
    """How many traces each value of the filter by outcome has, beside the other filters."""
    version: int
    """Of the store."""


def parse_query(fields: Mapping[str, str]) -> Query:
    """The query in the fields of a URL. Raises ValueError that names the field."""
    text = fields.get("q", "")
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"q must have at most {MAX_TEXT_CHARACTERS} characters, given {len(text)}")
    return Query(
        words=tuple(text.lower().split()),
        outcome=fields.get("outcome", ""),
        min_ms=_milliseconds(fields, "min_ms", 0.0),
        max_ms=_milliseconds(fields, "max_ms", math.inf),
    )


def found_of(query: Query, traces: Sequence[Summary], version: int) -> Found:
    """Apply the filters by duration and outcome."""
    near = [trace for trace in traces if query.matches_duration(trace)]
    outcomes = Counter(trace.outcome for trace in near)
    outcomes[FAILOVERS] = sum(trace.num_failovers > 0 for trace in near)
    matching = [trace for trace in near if query.matches_outcome(trace)]
    return Found(sorted(matching, key=lambda trace: -trace.start), outcomes, version)


def _milliseconds(fields: Mapping[str, str], name: str, default: float) -> float:
    given = fields.get(name, "")
    if not given:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise ValueError(f"{name} must be a number of milliseconds from 0 on, given {given[:40]!r}")
    return value
