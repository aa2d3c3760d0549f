"""OpenTelemetry's tracer and tracer provider for `RecordedSpan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
)
from opentelemetry.util.types import Attributes

from mesh.observability.recording.span import RecordedSpan, new_span_id, new_trace_id
from mesh.observability.recording.traces import Traces

_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)

STATE_KEY = "weir"
"""Weir's entry in `tracestate`, for its services only."""

_HELD = "held"
HELD_STATE = TraceState([(STATE_KEY, _HELD)])
"""The `tracestate` between Weir's services of a trace that is not sampled: hold its spans, since
the service that the trace entered through decides at the end whether it is kept."""

UNRECORDED_STATE = TraceState([(STATE_KEY, "unrecorded")])
"""The `tracestate` of a request whose spans are not even held, such as a probe."""

_FORCED = create_key("weir-forced-trace")


def forced(context: Context) -> Context:
    """The context for a span whose trace is exported whatever the sampler decides."""
    return set_value(_FORCED, True, context)


class RecordingProvider(trace.TracerProvider):
    """Tracers whose spans all record; the sampler decides which traces are exported in any case."""

    def __init__(
        self,
        resource: Resource,
        sampler: Sampler,
        processors: Sequence[SpanProcessor],
        scope: InstrumentationScope,
        *,
        holds: bool,
    ) -> None:
        """`sampler` decides once for each trace that begins in this process, or arrives here.

        `holds`: spans of the other traces are held until their requests end. If False they are
        not recorded.
        """
        self.resource = resource
        self.traces = Traces(processors, resource, scope)
        self._processors = processors
        self._tracer = RecordingTracer(sampler, self.traces, holds=holds)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> RecordingTracer:
        return self._tracer

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export all spans of sampled and kept traces that have ended."""
        return all([each.force_flush(timeout_millis) for each in self._processors])

    def shutdown(self) -> None:
        """Export the same spans and stop."""
        for processor in self._processors:
            processor.shutdown()


class RecordingTracer(trace.Tracer):
    """Starts spans. A child has the decision of its parent, a new trace that of the sampler."""

    def __init__(self, sampler: Sampler, traces: Traces, *, holds: bool) -> None:
        self._sampler = sampler
        self._traces = traces
        self._holds = holds

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        above = trace.get_current_span(context)
        parent = above.get_span_context()
        decides = False
        if isinstance(above, RecordedSpan):
            own = SpanContext(
                parent.trace_id, new_span_id(), False, parent.trace_flags, parent.trace_state
            )
        else:
            own = self._at_the_entry(parent, context, name, kind, attributes, links)
            if not own.trace_flags & TraceFlags.SAMPLED:
                if not self._holds:
                    return NonRecordingSpan(own)
                decides = parent.trace_state.get(STATE_KEY) != _HELD
        return RecordedSpan(
            name,
            own,
            parent if parent.is_valid else None,
            self._traces.ended,
            kind=kind,
            attributes=attributes,
            links=links or (),
            start_time=start_time,
            decides=decides,
        )

    @contextmanager
    def start_as_current_span(  # type: ignore[override]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Iterator[Span]:
        span = self.start_span(name, context, kind, attributes, links, start_time)
        try:
            with trace.use_span(
                span,
                record_exception=record_exception,
                set_status_on_exception=set_status_on_exception,
            ):
                yield span
        finally:
            if end_on_exit:
                span.end()

    def _at_the_entry(
        self,
        parent: SpanContext,
        context: Context | None,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        links: Sequence[Link] | None,
    ) -> SpanContext:
        """The context of a span whose parent is in another process, or that has none."""
        trace_id = parent.trace_id if parent.is_valid else new_trace_id()
        if get_value(_FORCED, context):
            return SpanContext(trace_id, new_span_id(), False, _SAMPLED, parent.trace_state)
        result = self._sampler.should_sample(context, trace_id, name, kind, attributes, links)
        if result.decision is Decision.RECORD_AND_SAMPLE:
            return SpanContext(trace_id, new_span_id(), False, _SAMPLED, result.trace_state)
        state = parent.trace_state
        if self._holds and state.get(STATE_KEY) != _HELD:
            state = state.add(STATE_KEY, _HELD) if state else HELD_STATE
        return SpanContext(trace_id, new_span_id(), False, _UNSAMPLED, state)
