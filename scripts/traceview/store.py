"""The last traces, in memory, for many threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from mesh.observability import semconv
from scripts.traceview.spans import Span, Summary, summarize

MAX_SPANS = 2000
"""Of one trace; what comes after that is dropped."""

MAX_STEPS = 200
"""Engine steps that are kept for one trace."""


class Store:
    """Holds the spans of the last `keep` traces; the oldest trace leaves first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._traces: OrderedDict[str, dict[str, Span]] = OrderedDict()
        self._steps: OrderedDict[str, list[Span]] = OrderedDict()
        self._lock = threading.Lock()
        self._on_change: Callable[[set[str]], None] = lambda trace_ids: None

    def on_change(self, call: Callable[[set[str]], None]) -> None:
        """`call` is told of the traces that grew, from the thread that brought the spans."""
        self._on_change = call

    def add(self, spans: Iterable[Span]) -> None:
        """Takes spans in any order; one that comes twice replaces itself."""
        changed: set[str] = set()
        with self._lock:
            for span in spans:
                if span.name == semconv.ENGINE_STEP and span.links:
                    # A trace of one span tells nothing alone: it is shown with its requests'.
                    for trace_id in set(span.links):
                        _append(self._steps, trace_id, span, self._keep)
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
        """All traces, the newest first."""
        with self._lock:
            traces = [(trace_id, list(spans.values())) for trace_id, spans in self._traces.items()]
        found = [summarize(trace_id, spans) for trace_id, spans in traces if spans]
        return sorted(found, key=lambda summary: -summary.start)

    def spans(self, trace_id: str) -> list[Span]:
        """The spans of a trace so far; none if it is not known, or not any more."""
        with self._lock:
            return list(self._traces.get(trace_id, {}).values())

    def steps(self, trace_id: str) -> list[Span]:
        """The sampled engine steps that carried this trace's requests."""
        with self._lock:
            return list(self._steps.get(trace_id, ()))


def _append(steps: OrderedDict[str, list[Span]], trace_id: str, span: Span, keep: int) -> None:
    found = steps.setdefault(trace_id, [])
    if len(found) < MAX_STEPS:
        found.append(span)
    while len(steps) > keep:
        steps.popitem(last=False)
