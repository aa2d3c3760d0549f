"""OpenTelemetry's tracer and tracer provider for `RecordedSpan`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
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

from mesh.observability.recording.current import current_span, make_current, restore_current
from mesh.observability.recording.sampling import ParentRateLimited
from mesh.observability.recording.span import (
    RecordedSpan,
    TracePart,
    new_span_id,
    new_trace_id,
)
from mesh.observability.recording.traces import Traces

_UNSAMPLED = TraceFlags(TraceFlags.DEFAULT)
_NO_STATE = TraceState()

STATE_KEY = "weir"
"""Weir's entry in `tracestate`, for its services only."""

_HELD = "held"
HELD_STATE = TraceState([(STATE_KEY, _HELD)])
"""The `tracestate` between Weir's services of a trace that is not sampled: hold its spans, since
the service that the trace entered through decides at the end whether it is kept."""

UNRECORDED_STATE = TraceState([(STATE_KEY, "unrecorded")])
"""The `tracestate` of a request whose spans are not even held, such as a probe."""


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
        self.tracer = RecordingTracer(sampler, self.traces, holds=holds)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> RecordingTracer:
        return self.tracer

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

    def begin(
        self,
        name: str,
        parent: SpanContext,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        start_time: int | None = None,
        *,
        force: bool = False,
    ) -> Span:
        """The first span of a request in this process: `parent` is in another one, or invalid.

        `force`: export the trace whatever the sampler decides.
        """
        has_parent = parent.is_valid
        trace_id = parent.trace_id if has_parent else new_trace_id()
        state, decides = parent.trace_state, False
        sampled = None if force else self._sampled_state(parent, trace_id, name, kind, attributes)
        if force or sampled is not None:
            flags, state = TraceFlags.SAMPLED, state if sampled is None else sampled
        elif self._holds:
            flags = TraceFlags.DEFAULT
            if not state:
                state, decides = HELD_STATE, True
            elif state is not HELD_STATE and state.get(STATE_KEY) != _HELD:
                state, decides = state.add(STATE_KEY, _HELD), True
        else:
            own = SpanContext(trace_id, new_span_id(), False, _UNSAMPLED, state)
            return NonRecordingSpan(own)
        part = TracePart(self._traces, trace_id, flags=flags, state=state, decides=decides)
        above = parent if has_parent else None
        span = RecordedSpan(name, part, above, kind, attributes, start_time)
        span.is_entry = True
        return span

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
        """`context` None: the parent is `current_span`."""
        above = current_span() if context is None else trace.get_current_span(context)
        if isinstance(above, RecordedSpan):
            span: Span = above.child(name, kind, attributes, start_time)
        else:
            span = self.begin(name, above.get_span_context(), kind, attributes, start_time)
        if links and isinstance(span, RecordedSpan):
            span.links = links
        return span

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
        """`current_span` is this span inside the block; OpenTelemetry's current span is not."""
        span = self.start_span(name, context, kind, attributes, links, start_time)
        token = make_current(span)
        try:
            yield span
        except Exception as error:
            if record_exception:
                span.record_exception(error)
            if set_status_on_exception:
                span.set_status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}")
            raise
        finally:
            restore_current(token)
            if end_on_exit:
                span.end()

    def _sampled_state(
        self,
        parent: SpanContext,
        trace_id: int,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
    ) -> TraceState | None:
        """The trace state of a trace that the sampler samples; None if it does not."""
        if isinstance(self._sampler, ParentRateLimited):
            return parent.trace_state if self._sampler.samples(parent) else None
        context = trace.set_span_in_context(NonRecordingSpan(parent), Context())
        result = self._sampler.should_sample(context, trace_id, name, kind, attributes)
        if result.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        return _NO_STATE if result.trace_state is None else result.trace_state
