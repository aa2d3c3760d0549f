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
from mesh.observability.recording.span import RecordedSpan, TracePart
from mesh.observability.semconv import Outcome

MAX_HELD_SPANS = 10_000
"""About 14 MB."""

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
        self._holding: OrderedDict[int, list[TracePart]] = OrderedDict()
        """The parts that have held spans, by trace; the oldest trace first."""
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
        """Export, hold or drop the span; the end of a request that decides settles its trace."""
        part = span.part
        if not part.is_settled:
            if span.is_entry and part.decides:
                self.settle(part, keep=self.matters(span.attributes.get(semconv.OUTCOME)))
            else:
                self._hold(part, span)
        if part.is_exported:
            self._export((span,))

    def settle(self, part: TracePart, *, keep: bool) -> None:
        """Decide whether the trace is kept, for this process and those that it has called."""
        if keep:
            part.settle(keep=True)
            self.keep(part.trace_id)
            self.on_kept(part.trace_id)
        else:
            self._drop(part)

    def keep(self, trace_id: int) -> None:
        """Export the trace: the spans that are held, and those that end later."""
        with self._lock:
            self._kept[trace_id] = None
            self._kept.move_to_end(trace_id)
            if len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
            spans = []
            for part in self._holding.pop(trace_id, ()):
                spans += self._take(part)
                part.settle(keep=True)
        self._export(spans)

    def matters(self, outcome: object, slow: bool = False) -> bool:
        """Whether to keep the trace of a request with this outcome, within the rate limits."""
        if outcome == Outcome.REFUSED:
            return self._refused_budget.take()
        return (slow or outcome in KEPT_OUTCOMES) and self._budget.take()

    def _hold(self, part: TracePart, span: RecordedSpan) -> None:
        """Hold the span, unless another process has decided meanwhile that its trace is kept."""
        with self._lock:
            if not part.held:
                if part.trace_id in self._kept:
                    part.settle(keep=True)
                    return
                self._holding.setdefault(part.trace_id, []).append(part)
            part.held.append(span)
            self._num_held += 1
            while self._num_held > self._max_held:
                _, oldest = self._holding.popitem(last=False)
                for each in oldest:
                    self._take(each)

    def _drop(self, part: TracePart) -> None:
        """Forget the held spans of a request, and those that end later."""
        with self._lock:
            part.settle(keep=False)
            if not self._take(part):
                return
            parts = self._holding[part.trace_id]
            parts.remove(part)
            if not parts:
                del self._holding[part.trace_id]

    def _take(self, part: TracePart) -> list[RecordedSpan]:
        spans, part.held = part.held, []
        self._num_held -= len(spans)
        return spans

    def _export(self, spans: Iterable[RecordedSpan]) -> None:
        for span in spans:
            readable = span.readable(self._resource, self._scope)
            for processor in self._processors:
                processor.on_end(readable)
