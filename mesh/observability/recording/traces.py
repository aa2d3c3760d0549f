"""The ended spans of a process: exported, or held until it is known whether their trace is kept.

The spans of a sampled trace are exported when they end. The spans of any other trace are held in a
bounded buffer: at the end of a request that matters (failed, slow) its trace is kept, and the spans
are exported then. Most traces are never kept, and cost no conversion, encoding or transfer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mesh.observability import semconv
from mesh.observability.recording.rate import TokenBucket
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.semconv import Outcome

MAX_HELD_SPANS = 10_000
"""About 15 MB."""

MAX_KEPT_TRACES = 2_000
"""Kept traces whose later spans are exported at their end."""

KEPT_OUTCOMES = frozenset({Outcome.FAILED, Outcome.DEADLINE, Outcome.FAILED_OVER})

KEPT_PER_SECOND = 20.0
KEPT_AT_ONCE = 200
"""Limits of the traces that one process keeps, as all requests may fail."""

REFUSED_PER_SECOND = 2.0
REFUSED_AT_ONCE = 20
"""Limits of the traces of refused requests, of which an overload has thousands."""


class Traces:
    """Receives the ended spans. Thread-safe."""

    def __init__(
        self,
        processors: Sequence[SpanProcessor],
        resource: Resource,
        scope: InstrumentationScope,
        *,
        max_held_spans: int = MAX_HELD_SPANS,
        max_kept_traces: int = MAX_KEPT_TRACES,
    ) -> None:
        self._processors = processors
        self._resource = resource
        self._scope = scope
        self._max_held = max_held_spans
        self._max_kept = max_kept_traces
        self._held: OrderedDict[int, list[RecordedSpan]] = OrderedDict()
        self._num_held = 0
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()
        self._budget = TokenBucket(KEPT_PER_SECOND, KEPT_AT_ONCE)
        self._refused_budget = TokenBucket(REFUSED_PER_SECOND, REFUSED_AT_ONCE)
        self.on_kept: Callable[[int], object] = lambda trace_id: None
        """Called with the trace id if this process has decided that a trace is kept."""

    @property
    def num_held(self) -> int:
        """Number of spans whose trace is undecided."""
        return self._num_held

    def ended(self, span: RecordedSpan) -> None:
        """Export the span, or hold it; a span that decides settles its trace."""
        context = span.get_span_context()
        if context.trace_flags & 1:
            self._export((span,))
            return
        with self._lock:
            kept = context.trace_id in self._kept
            if not kept:
                self._hold(context.trace_id, span)
        if kept:
            self._export((span,))
        elif span.decides:
            self._decide(span)

    def _decide(self, span: RecordedSpan) -> None:
        trace_id = span.get_span_context().trace_id
        keep = span.keep
        if keep is None:
            keep = self.matters(span.attributes.get(semconv.OUTCOME))
        if keep:
            self.keep(trace_id)
            self.on_kept(trace_id)
        else:
            self.drop(trace_id)

    def keep(self, trace_id: int) -> None:
        """Export the trace: the spans that are held, and those that end later."""
        with self._lock:
            self._kept[trace_id] = None
            self._kept.move_to_end(trace_id)
            if len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
            spans = self._take(trace_id)
        self._export(spans)

    def matters(self, outcome: object, slow: bool = False) -> bool:
        """Whether to keep the trace of a request with this outcome, within the rate limits."""
        if outcome == Outcome.REFUSED:
            return self._refused_budget.take()
        return (slow or outcome in KEPT_OUTCOMES) and self._budget.take()

    def drop(self, trace_id: int) -> None:
        """Forget the held spans of a trace."""
        with self._lock:
            self._take(trace_id)

    def _hold(self, trace_id: int, span: RecordedSpan) -> None:
        self._held.setdefault(trace_id, []).append(span)
        self._num_held += 1
        while self._num_held > self._max_held:
            _, oldest = self._held.popitem(last=False)
            self._num_held -= len(oldest)

    def _take(self, trace_id: int) -> list[RecordedSpan]:
        spans = self._held.pop(trace_id, [])
        self._num_held -= len(spans)
        return spans

    def _export(self, spans: Iterable[RecordedSpan]) -> None:
        for span in spans:
            readable = span.readable(self._resource, self._scope)
            for processor in self._processors:
                processor.on_end(readable)
