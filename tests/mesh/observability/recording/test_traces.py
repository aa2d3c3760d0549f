"""Held spans: bounded in number, and the traces kept in rate."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable, Sequence

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceState, set_span_in_context

from mesh.observability.recording import traces
from mesh.observability.recording.span import RecordedSpan, TracePart
from mesh.observability.recording.tracer import RecordingProvider
from mesh.observability.recording.traces import Traces
from mesh.observability.semconv import OUTCOME, Outcome

Make = Callable[..., Traces]

MAX_HELD_BYTES = 20e6


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def make(exporter: InMemorySpanExporter) -> Make:
    def create(**limits: int) -> Traces:
        processors = [SimpleSpanProcessor(exporter)]
        return Traces(processors, Resource({}), InstrumentationScope("weir"), **limits)

    return create


def end_span(into: Traces, trace_id: int, *, outcome: Outcome | None = None) -> None:
    """A span ends; with an outcome it decides about its trace."""
    part = TracePart(into, trace_id, flags=0, state=TraceState(), decides=outcome is not None)
    span = RecordedSpan("s", part, None, attributes={} if outcome is None else {OUTCOME: outcome})
    span.is_entry = True
    span.end()


def test_the_oldest_trace_is_forgotten(make: Make, exporter: InMemorySpanExporter) -> None:
    """The number of held spans is bounded, also if no decision ever arrives."""
    held = make(max_held_spans=10)
    for trace_id in range(1, 101):
        end_span(held, trace_id)
        end_span(held, trace_id)
        assert held.num_held <= 10
    for trace_id in range(1, 101):
        held.keep(trace_id)
    assert {span.context.trace_id for span in exporter.get_finished_spans()} == set(range(96, 101))
    assert held.num_held == 0


def test_a_large_trace_is_bounded_as_well(make: Make) -> None:
    """A trace with more spans than the limit is forgotten, and begins anew."""
    held = make(max_held_spans=10)
    for _ in range(100):
        end_span(held, 1)
        assert held.num_held <= 10


def test_decisions_are_remembered_up_to_a_number(
    make: Make, exporter: InMemorySpanExporter
) -> None:
    """Spans of a kept trace that end later are exported, those of the oldest decision are not."""
    held = make(max_kept_traces=2)
    for trace_id in (1, 2, 3):
        held.keep(trace_id)
    for trace_id in (1, 2, 3):
        end_span(held, trace_id)
    assert [span.context.trace_id for span in exporter.get_finished_spans()] == [2, 3]


@pytest.mark.parametrize(
    ("outcome", "most"),
    [(Outcome.FAILED, traces.KEPT_AT_ONCE), (Outcome.REFUSED, traces.REFUSED_AT_ONCE)],
)
def test_the_rate_of_kept_traces_is_limited(
    make: Make, exporter: InMemorySpanExporter, outcome: Outcome, most: int
) -> None:
    """If all requests fail, the collector is not flooded; refusals have a limit of their own."""
    held = make()
    for trace_id in range(1, 2 * most):
        end_span(held, trace_id, outcome=outcome)
    assert most <= len(exporter.get_finished_spans()) < 1.5 * most
    assert held.num_held == 0
    end_span(held, 10**6, outcome=Outcome.DEADLINE)
    others = most if outcome is Outcome.FAILED else most + 1
    assert others <= len(exporter.get_finished_spans()) < 1.5 * most


NUM_OPEN = 2000
SPANS_EACH = 8
"""Spans of a stream that have ended while it is open, in an orchestrator with a failover."""


def test_the_memory_of_held_spans_is_bounded() -> None:
    """Of 2,000 streams that are open at once, with attributes and events."""
    tracemalloc.start()
    try:
        provider = RecordingProvider(
            Resource({}), ALWAYS_OFF, [], InstrumentationScope("weir"), holds=True
        )
        tracer = provider.get_tracer("t")
        before, _ = tracemalloc.get_traced_memory()
        roots = [tracer.start_span("request", context=Context()) for _ in range(NUM_OPEN)]
        open_bytes = tracemalloc.get_traced_memory()[0] - before
        for root in roots:
            parent = set_span_in_context(root, Context())
            for number in range(SPANS_EACH):
                span = tracer.start_span(f"stage {number}", context=parent)
                span.set_attributes({f"weir.attribute.{name}": name for name in range(6)})
                span.add_event("weir.event", {"number": number})
                span.end()
        held_bytes = tracemalloc.get_traced_memory()[0] - before - open_bytes
        assert provider.traces.num_held <= traces.MAX_HELD_SPANS
        assert held_bytes < MAX_HELD_BYTES
        for root in roots:
            root.end()
        assert provider.traces.num_held == 0
        left = tracemalloc.get_traced_memory()[0] - before - open_bytes
        assert left < MAX_HELD_BYTES / 50
    finally:
        tracemalloc.stop()


class StuckExporter(SpanExporter):
    """Waits for a collector that never answers."""

    def __init__(self) -> None:
        self.is_waiting, self.answer = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.is_waiting.set()
        self.answer.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Nothing to do."""


def test_a_collector_that_is_slow_holds_up_no_span() -> None:
    """Also when the queue of the export is full: further spans are dropped."""
    exporter = StuckExporter()
    processor = BatchSpanProcessor(exporter, max_queue_size=64, max_export_batch_size=16)
    held = Traces([processor], Resource({}), InstrumentationScope("weir"))
    try:
        held.keep(1)
        while not exporter.is_waiting.is_set():
            end_span(held, 1)
        for _ in range(1000):
            end_span(held, 1)  # would never return if it waited
        assert held.num_held == 0
    finally:
        exporter.answer.set()
        processor.shutdown()
