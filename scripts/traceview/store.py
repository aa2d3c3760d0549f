"""Thread-safe in-memory store of the last traces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from mesh.observability import semconv
from scripts.traceview.query import Found, Query, found_of
from scripts.traceview.spans import Span, Summary, summarize, text_of

MAX_SPANS = 2000
"""Maximum spans of one trace; further spans are dropped."""

MAX_STEPS = 200
"""Maximum engine steps stored for one trace."""


class _Trace:
    """The spans of one trace; its summary and text are made when they are needed first."""

    __slots__ = ("_id", "_spans", "_summary", "_text")

    def __init__(self, trace_id: str) -> None:
        self._id = trace_id
        self._spans: dict[str, Span] = {}
        self._summary: Summary | None = None
        self._text: str | None = None

    def add(self, span: Span) -> bool:
        """Add or replace a span; whether there is room for it."""
        if len(self._spans) >= MAX_SPANS:
            return False
        self._spans[span.span_id] = span
        self._summary = self._text = None
        return True

    @property
    def spans(self) -> list[Span]:
        return list(self._spans.values())

    @property
    def summary(self) -> Summary:
        if self._summary is None:
            self._summary = summarize(self._id, self.spans)
        return self._summary

    @property
    def text(self) -> str:
        if self._text is None:
            self._text = text_of(self._id, self.spans)
        return self._text


class Store:
    """Stores the spans of the last `keep` traces; evicts the oldest trace first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._traces: OrderedDict[str, _Trace] = OrderedDict()
        self._steps: OrderedDict[str, list[Span]] = OrderedDict()
        self._lock = threading.Lock()
        self._version = 0
        self._on_change: Callable[[set[str]], None] = lambda trace_ids: None

    @property
    def version(self) -> int:
        """Changes with every change of the traces."""
        return self._version

    def on_change(self, callback: Callable[[set[str]], None]) -> None:
        """Sets `callback`, called with the ids of changed traces in the thread that calls `add`."""
        self._on_change = callback

    def add(self, spans: Iterable[Span]) -> None:
        """Adds spans in any order; a span with a known id replaces the stored one."""
        changed: set[str] = set()
        with self._lock:
            for span in spans:
                if span.name == semconv.ENGINE_STEP:
                    _append(self._steps, span.trace_id, span, self._keep)
                    continue
                trace = self._traces.setdefault(span.trace_id, _Trace(span.trace_id))
                if trace.add(span):
                    changed.add(span.trace_id)
            while len(self._traces) > self._keep:
                self._traces.popitem(last=False)
            self._version += bool(changed)
        if changed:
            self._on_change(changed)

    def summaries(self) -> list[Summary]:
        """Summaries of all traces, newest first."""
        return list(self.find(Query()).traces)

    def find(self, query: Query) -> Found:
        """The traces that match a query, newest first."""
        with self._lock:
            version = self._version
            traces = [trace.summary for trace in self._traces.values() if query.matches_text(trace)]
        return found_of(query, traces, version)

    def spans(self, trace_id: str) -> list[Span]:
        """The spans received of a trace; empty if it is unknown or evicted."""
        with self._lock:
            trace = self._traces.get(trace_id)
            return [] if trace is None else trace.spans

    def steps(self, trace_id: str) -> list[Span]:
        """The sampled engine steps of this trace."""
        with self._lock:
            return list(self._steps.get(trace_id, ()))


def _append(steps: OrderedDict[str, list[Span]], trace_id: str, span: Span, keep: int) -> None:
    stored = steps.setdefault(trace_id, [])
    if len(stored) < MAX_STEPS:
        stored.append(span)
    while len(steps) > keep:
        steps.popitem(last=False)
