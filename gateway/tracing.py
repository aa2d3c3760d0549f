"""The server span of an HTTP request, by OpenTelemetry's semantic conventions for HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.types import Scope

from gateway.errors import CLIENT_CLOSED_REQUEST
from gateway.routes import UNMATCHED

TRACER = trace.get_tracer("weir.gateway")

_IDS = RandomIdGenerator()


@contextmanager
def http_span(scope: Scope, headers: Headers) -> Iterator[trace.Span]:
    """The current span of a request, child of the caller's `traceparent`.

    The query string is left out: it holds what people search for.
    """
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"],
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
    }
    if scope["client"] is not None:
        attributes["client.address"] = scope["client"][0]
    for name, header in (("user_agent.original", "user-agent"), ("server.address", "host")):
        if header in headers:
            attributes[name] = headers[header]
    with TRACER.start_as_current_span(
        scope["method"],
        context=propagate.extract(dict(headers)),
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def name_span(span: trace.Span, method: str, route: str, status: int) -> None:
    """Says at the end what the request turned out to be."""
    if route != UNMATCHED:
        span.update_name(f"{method} {route}")
        span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))
    elif status == CLIENT_CLOSED_REQUEST:
        span.add_event("client disconnected")


def unrecorded_span() -> AbstractContextManager[object]:
    """A trace id for the headers of a request that nobody wants to see in a trace."""
    context = SpanContext(_IDS.generate_trace_id(), _IDS.generate_span_id(), is_remote=False)
    return trace.use_span(NonRecordingSpan(context))
