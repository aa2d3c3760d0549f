"""OpenTelemetry of a process: W3C propagation always, an exporter only if one is configured.

The standard variables apply (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, …; OpenTelemetry specification, "SDK environment variables"). Without an
exporter nothing is recorded, but requests still have trace ids in headers and logs. The exporters
are in `mesh.observability.recording.exporters`, the default sampler in
`mesh.observability.recording.sampling`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan, Span, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.observability import semconv
from mesh.observability.recording.current import CurrentSpan, current_span
from mesh.observability.recording.exporters import exporter_names, span_exporters
from mesh.observability.recording.sampling import RATE_LIMITED, chosen_sampler, sampler
from mesh.observability.recording.span import RecordedSpan, new_span_id, new_trace_id
from mesh.observability.recording.tracer import (
    UNRECORDED_STATE,
    RecordingProvider,
    RecordingTracer,
)
from mesh.observability.recording.traces import Traces
from mesh.observability.recording.w3c import (
    TRACEPARENT,
    TRACESTATE,
    common_span_context,
    common_trace_id,
)
from mesh.observability.semconv import Outcome

logger = logging.getLogger(__name__)

follows_callers = False
"""Whether the sampler is parent-based: it follows the caller's sampling decision."""

_traces: Traces | None = None

holds = False
"""Whether spans of traces that are not sampled are held until their requests end."""

silent = False
"""Whether this process has no exporter. Then no span is recorded, and one unrecorded span carries
the trace id of a request through all its work."""

_DELAY_VARIABLE = "OTEL_BSP_SCHEDULE_DELAY"
_EXPORT_DELAY_MS = 1000
"""Instead of the SDK's 5 s, so that a trace is complete when it is opened at once."""

SHUTDOWN_LIMIT_S = 3.0

CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

BAGGAGE = "baggage"

_UNRECORDED = UNRECORDED_STATE.to_header()

_W3C = TraceContextTextMapPropagator()
_w3c_only = os.environ.get("OTEL_PROPAGATORS", "tracecontext,baggage") == "tracecontext,baggage"

_propagated = tuple(propagate.get_global_textmap().fields)
"""Headers of the configured propagators; with the default, `traceparent` is one of them."""


def weir_version() -> str:
    """The installed version, such as 0.1.0."""
    try:
        return version("weir")
    except PackageNotFoundError:
        return "0+unknown"


def exporter_configured() -> bool:
    """Whether the standard variables configure an exporter."""
    return bool(exporter_names(os.environ))


@cache
def captures_content() -> bool:
    """Whether spans may contain prompts, queries and answers; by default they must not.

    The values are those of OpenTelemetry's GenAI instrumentations, of which only spans exist here.
    """
    value = os.environ.get(CONTENT_VARIABLE, "").lower()
    return value in ("true", "span_only", "span_and_event")


def start(service: str) -> RecordingProvider:
    """Install the tracer provider of this process; `OTEL_SERVICE_NAME` overrides `service`.

    The caller calls `shut_down` at the end, which exports buffered spans. Raises ValueError that
    names an invalid variable.
    """
    global follows_callers, holds, silent, tracer, _traces
    chosen = chosen_sampler(os.environ)
    follows_callers = chosen.startswith("parentbased_")
    silent = not exporter_configured()
    holds = not silent and chosen == RATE_LIMITED
    if silent:
        provider, _traces = _without_export(), None
    else:
        provider = _with_export(service)
        _traces = provider.traces
    tracer = provider.tracer
    trace.set_tracer_provider(provider)
    return provider


def _without_export() -> RecordingProvider:
    """Its spans have ids and record nothing."""
    scope = InstrumentationScope("weir")
    return RecordingProvider(Resource({}), ALWAYS_OFF, [], scope, holds=False)


def _with_export(service: str) -> RecordingProvider:
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    resource = Resource.create(
        {
            semconv.SERVICE_NAME: name,
            semconv.SERVICE_NAMESPACE: "weir",
            semconv.SERVICE_VERSION: weir_version(),
        },
        schema_url=semconv.SCHEMA_URL,
    )
    delay_ms = None if os.environ.get(_DELAY_VARIABLE) else _EXPORT_DELAY_MS
    return RecordingProvider(
        resource,
        sampler(os.environ) or TracerProvider().sampler,  # the SDK's, by the same variables
        [
            BatchSpanProcessor(exporter, schedule_delay_millis=delay_ms)
            for exporter in span_exporters(os.environ)
        ],
        InstrumentationScope("weir", weir_version(), semconv.SCHEMA_URL),
        holds=holds,
    )


tracer: RecordingTracer = _without_export().tracer
"""Of this process; until `start`, its spans record nothing."""


def kept_traces() -> Traces | None:
    """The held spans of this process; None if it exports none."""
    return _traces


def shut_down(provider: RecordingProvider, limit_s: float = SHUTDOWN_LIMIT_S) -> None:
    """Export the buffered spans; give them up after `limit_s` if the collector does not answer."""
    # The exporters have no limit for this: with retries they take 7 to 60 s.
    thread = threading.Thread(target=provider.shutdown, name="span-export", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        logger.warning("spans not exported, no answer from the collector")


def is_exported() -> bool:
    """Whether it is decided that the trace of the current span is exported."""
    if silent:
        return False
    span = current_span()
    if isinstance(span, RecordedSpan):
        return span.part.is_exported
    return span.get_span_context().trace_flags.sampled


def settle_trace(outcome: Outcome, *, slow: bool = False) -> bool:
    """Decide whether the trace of the current request is exported; its entry span is current.

    Returns whether the trace is exported. A later call does not change the decision.
    """
    span = current_span()
    if silent or not isinstance(span, RecordedSpan):
        return False
    part = span.part
    if not part.is_settled and part.decides:
        part.traces.settle(part, keep=part.traces.matters(outcome, slow))
    return part.is_exported


def trace_id() -> str:
    """The current trace id, 32 hexadecimal digits; empty outside of a span."""
    span = current_span()
    if silent and isinstance(span, UnrecordedSpan):
        return span.hex_id
    if isinstance(span, RecordedSpan):
        return span.part.hex_id
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def recorded(span: Span) -> bool:
    """Whether child spans of this span must be created.

    True also without a current span, as the sampler decides then. Creating an unrecorded span costs
    nearly as much as a recorded one, so callers create none if this is False.
    """
    if silent:
        return False
    if isinstance(span, RecordedSpan):
        return True
    found = span.get_span_context()
    return found.trace_flags.sampled or not found.is_valid


def caller_of(carrier: Mapping[str, str]) -> tuple[SpanContext, context.Context | None]:
    """The caller's span in a request's headers, invalid if there is none.

    Also the context to attach during the request, if the headers have more, such as baggage.
    """
    if _w3c_only and BAGGAGE not in carrier:
        if TRACEPARENT not in carrier:
            return INVALID_SPAN_CONTEXT, None
        found = common_span_context(carrier)
        if found is not None:
            return found, None
    extracted = propagate.extract(carrier)
    return trace.get_current_span(extracted).get_span_context(), extracted


def propagates_only_w3c() -> bool:
    """Whether `traceparent` and `tracestate` are all that the current context propagates."""
    return _w3c_only and not context.get_current()


class UnrecordedSpan(NonRecordingSpan):
    """The only span of a request that is not recorded; carries the trace id.

    As every span it is a context manager; this one does nothing.
    """

    def __init__(
        self, hex_id: str, headers: Mapping[str, str], context: SpanContext | None = None
    ) -> None:
        """`hex_id` is the trace id, and `headers` are sent with outgoing calls.

        `context` None: the one in `headers`, which is rarely needed.
        """
        super().__init__(INVALID_SPAN_CONTEXT if context is None else context)
        self.hex_id = hex_id
        self.headers = headers

    def get_span_context(self) -> SpanContext:
        if not self._context.is_valid:
            parent = {TRACEPARENT: self.headers[TRACEPARENT]}
            self._context = common_span_context(parent) or INVALID_SPAN_CONTEXT
        return self._context


def span_if_unrecorded(carrier: Mapping[str, str]) -> AbstractContextManager[Span] | None:
    """A block for a request that is not recorded; None if the request may be recorded.

    The decision uses the caller's sampled flag alone, since creating an unrecorded span would cost
    nearly as much as a recorded one.
    """
    if silent:
        return silent_span(carrier)
    if TRACEPARENT not in carrier or not (holds or follows_callers):
        return None
    if holds and carrier.get(TRACESTATE) != _UNRECORDED:
        return None
    span = _unrecorded_caller(carrier)
    return (
        None if span is None or span.get_span_context().trace_flags.sampled else CurrentSpan(span)
    )


def silent_span(carrier: Mapping[str, str]) -> AbstractContextManager[Span]:
    """Makes an unrecorded span current: with the caller's trace id, or with a new one."""
    return CurrentSpan(_unrecorded_caller(carrier) or _new_unrecorded())


def unrecorded_span() -> AbstractContextManager[Span]:
    """Makes a span current that is not recorded, here and by the called services."""
    span = _new_unrecorded()
    span.headers = {**span.headers, TRACESTATE: _UNRECORDED}
    return CurrentSpan(span)


def _new_unrecorded() -> UnrecordedSpan:
    """Of a trace that begins here."""
    trace_id, span_id = new_trace_id(), new_span_id()
    hex_id = f"{trace_id:032x}"
    if _w3c_only:  # W3C Trace Context, section 3.2; the library takes four times as long
        return UnrecordedSpan(hex_id, {TRACEPARENT: f"00-{hex_id}-{span_id:016x}-00"})
    headers: dict[str, str] = {}
    ids = SpanContext(trace_id, span_id, is_remote=False)
    propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(ids)))
    return UnrecordedSpan(hex_id, headers, ids)


def _unrecorded_caller(carrier: Mapping[str, str]) -> UnrecordedSpan | None:
    """The caller's span context, with its headers to be forwarded unchanged; None without one."""
    if _w3c_only:
        if TRACEPARENT not in carrier:
            return None
        hex_id = common_trace_id(carrier)
        if hex_id and TRACESTATE not in carrier and BAGGAGE not in carrier:
            return UnrecordedSpan(hex_id, {TRACEPARENT: carrier[TRACEPARENT]})
    given = {name: carrier[name] for name in _propagated if name in carrier}
    found = common_span_context(carrier) if _w3c_only else None
    if found is None:
        extract = _W3C.extract if _w3c_only else propagate.extract
        found = trace.get_current_span(extract(given)).get_span_context()
    # gRPC sends printable ASCII only, and fails the call otherwise.
    sent = {name: value for name, value in given.items() if value.isascii() and value.isprintable()}
    if not found.is_valid:
        return None
    return UnrecordedSpan(trace.format_trace_id(found.trace_id), sent, found)
