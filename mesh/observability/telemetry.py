"""OpenTelemetry for a process: W3C propagation always, an exporter only where one is configured.

The standard variables rule (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, …; OpenTelemetry specification, "SDK environment variables"). Without an
endpoint nothing is recorded, but spans still have ids, so that a request has a trace id in
headers and logs all the same. What is recorded of many requests:
`mesh.observability.trace_sampling`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mesh.observability import semconv
from mesh.observability.trace_sampling import chosen_sampler, sampler

follows_callers = False
"""Whether the sampler records what a caller records, and nothing of what it does not."""

silent = False
"""Whether this process has started without an exporter: no span will ever be recorded, and all
that a request needs of them is the trace id, which one for all its work can carry."""

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

CONTENT_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


_IDS = RandomIdGenerator()

_W3C = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""W3C Trace Context, section 3.2, in the only version that there is."""
_w3c_only = os.environ.get("OTEL_PROPAGATORS", "tracecontext,baggage") == "tracecontext,baggage"

_propagated = tuple(propagate.get_global_textmap().fields)
"""Headers that carry traces, `traceparent` among them unless `OTEL_PROPAGATORS` says otherwise."""


def weir_version() -> str:
    """The installed version, such as 0.1.0."""
    try:
        return version("weir")
    except PackageNotFoundError:
        return "0+unknown"


def exporter_configured() -> bool:
    """Whether the standard variables ask for traces to be sent somewhere."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    switched_off = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none"
    return not disabled and not switched_off and any(map(os.environ.get, ENDPOINT_VARIABLES))


def captures_content() -> bool:
    """Whether spans may hold prompts, queries and answers; they may not unless it is asked for.

    The values are those of OpenTelemetry's own GenAI instrumentations; we have spans only.
    """
    value = os.environ.get(CONTENT_VARIABLE, "").lower()
    return value in ("true", "span_only", "span_and_event")


def start(service: str) -> TracerProvider:
    """Installs the tracer provider of this process; `OTEL_SERVICE_NAME` overrides `service`.

    The caller shuts it down at the end, which sends what is still buffered. Raises ValueError
    naming a variable of ours that is no good.
    """
    global follows_callers, silent
    follows_callers = chosen_sampler(os.environ).startswith("parentbased_")
    silent = not exporter_configured()
    if silent:
        provider = TracerProvider(sampler=ALWAYS_OFF)
        trace.set_tracer_provider(provider)
        return provider

    # Imported here because it costs 100 ms that a run without an exporter need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    name = os.environ.get("OTEL_SERVICE_NAME", service)
    resource = Resource.create(
        {
            semconv.SERVICE_NAME: name,
            semconv.SERVICE_NAMESPACE: "weir",
            semconv.SERVICE_VERSION: weir_version(),
        },
        schema_url=semconv.SCHEMA_URL,
    )
    provider = TracerProvider(resource=resource, sampler=sampler(os.environ))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def trace_id() -> str:
    """The current trace id, 32 hexadecimal digits; empty outside of a span."""
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


def recorded(span: Span) -> bool:
    """Whether what is done under this span is to have spans of its own.

    Under none at all, yes: a sampler will say. Making a span that nobody records costs nearly as
    much as one that somebody does, so where this is False none is made.
    """
    if silent:
        return False
    found = span.get_span_context()
    return found.trace_flags.sampled or not found.is_valid


class UnrecordedSpan(NonRecordingSpan):
    """Stands for all that a request does here: nothing of it is recorded, all of it has this id.

    As every span it is a context manager, here one that does nothing.
    """

    def __init__(self, context: SpanContext, headers: Mapping[str, str]) -> None:
        """`headers` are what is passed on to those that are called."""
        super().__init__(context)
        self.headers = headers


class CurrentSpan:
    """A context manager in which a span is the current one; `trace.use_span` at a third of it."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)


def span_if_unrecorded(carrier: Mapping[str, str]) -> AbstractContextManager[Span] | None:
    """What to do a caller's work in, where none of it will be recorded; None where it may be.

    Making an empty span takes a good part of what a full one does, and a busy service makes
    thousands: a caller's word is enough to make none.
    """
    if silent:
        return silent_span(carrier)
    if not follows_callers or "traceparent" not in carrier:
        return None
    span = _caller_of(carrier)
    return (
        None if span is None or span.get_span_context().trace_flags.sampled else CurrentSpan(span)
    )


def silent_span(carrier: Mapping[str, str]) -> AbstractContextManager[Span]:
    """The caller's trace as the current one, or a new one, where nothing is recorded."""
    span = _caller_of(carrier)
    if span is None:
        ids = SpanContext(_IDS.generate_trace_id(), _IDS.generate_span_id(), is_remote=False)
        span = UnrecordedSpan(ids, _headers_of(ids))
    return CurrentSpan(span)


def _headers_of(ids: SpanContext) -> Mapping[str, str]:
    """What tells those that are called of a trace that nobody records."""
    if _w3c_only:  # W3C Trace Context, section 3.2; the library takes four times as long
        return {"traceparent": f"00-{ids.trace_id:032x}-{ids.span_id:016x}-00"}
    headers: dict[str, str] = {}
    propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(ids)))
    return headers


def _caller_of(carrier: Mapping[str, str]) -> UnrecordedSpan | None:
    """What a caller says of itself, to be passed on as it is; None where it says nothing."""
    if _w3c_only and "traceparent" not in carrier:
        return None
    given = {name: carrier[name] for name in _propagated if name in carrier}
    plain = _TRACEPARENT.fullmatch(carrier["traceparent"]) if _w3c_only else None
    if plain is not None and "tracestate" not in given:
        # What nearly all callers send; the library takes three times as long for it.
        ids, flags = (int(plain[1], 16), int(plain[2], 16)), TraceFlags(int(plain[3], 16))
        found = SpanContext(*ids, is_remote=True, trace_flags=flags)
    else:
        extract = _W3C.extract if _w3c_only else propagate.extract
        found = trace.get_current_span(extract(given)).get_span_context()
    return UnrecordedSpan(found, given) if found.is_valid else None
