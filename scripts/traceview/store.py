"""Thread-safe in-memory store of the last traces."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from mesh.observability import semconv
from scripts.traceview.spans import Span, Summary, summarize

MAX_SPANS = 2000
"""Maximum spans of one trace; further spans are dropped."""

MAX_STEPS = 200
"""Maximum engine steps stored for one trace."""


class Store:
    """Stores the spans of the last `keep` traces; evicts the oldest trace first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._traces: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self._steps: OrderedDict[str, list[Span]] = OrderedDict()
        self._lock = threading.Lock()
        self._on_change: Callable[[set[str]], None] = lambda trace_ids: None

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
                trace = self._traces.setdefault(span.trace_id, {})
                if len(trace) < MAX_SPANS:
                    trace[span.span_id] = span
                    changed.add(span.trace_id)
            while len(self._traces) > self._keep:
                self._traces.popitem(last=False)
        if changed:
            self._on_change(changed)

    def summaries(self) -> list[Summary]:
        """Summaries of all traces, newest first."""
        with self._lock:
            traces = [(trace_id, list(spans.values())) for trace_id, spans in self._traces.items()]
        found = [summarize(trace_id, spans) for trace_id, spans in traces if spans]
        return sorted(found, key=lambda summary: -summary.start)

    def spans(self, trace_id: str) -> list[Span]:
        """The spans received of a trace; empty if it is unknown or evicted."""
        with self._lock:
            return list(self._traces.get(trace_id, {}).values())

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
