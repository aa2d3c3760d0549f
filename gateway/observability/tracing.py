"""The server span of an HTTP request (OpenTelemetry semantic conventions for HTTP)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from gateway.http.errors import CLIENT_CLOSED_REQUEST
from gateway.http.headers import TRACE_REQUEST
from gateway.http.routes import UNMATCHED
from gateway.observability.metrics import operation_of
from mesh.context import current_request
from mesh.errors import HTTP_ERROR, ErrorKind
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.recording.w3c import from_outside
from mesh.observability.semconv import Outcome


def http_span(scope: Scope, headers: Mapping[str, str]) -> AbstractContextManager[trace.Span]:
    """Start the current span of a request, a child of the caller's `traceparent`.

    The query string is not recorded: it contains what the user searches for.
    """
    headers = from_outside(headers)
    forces = headers.get(TRACE_REQUEST) == "1"
    unrecorded = None if forces and not telemetry.silent else telemetry.span_if_unrecorded(headers)
    return _http_span(scope, headers) if unrecorded is None else unrecorded


@contextmanager
def _http_span(scope: Scope, headers: Mapping[str, str]) -> Iterator[trace.Span]:
    with (
        telemetry.CallerContext(headers, force=headers.get(TRACE_REQUEST) == "1"),
        tracing.TRACER.start_as_current_span(
            scope["method"],
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
    ):
        if span.is_recording():  # building the attributes costs more than the span
            span.set_attributes(_attributes(scope, headers))
        yield span


def _attributes(scope: Scope, headers: Mapping[str, str]) -> dict[str, AttributeValue]:
    """Attributes that are known when the request arrives."""
    attributes: dict[str, AttributeValue] = {
        semconv.OUTCOME: Outcome.OK,
        semconv.HTTP_REQUEST_METHOD: scope["method"],
        semconv.URL_SCHEME: scope["scheme"],
        semconv.URL_PATH: scope["path"],
        semconv.NETWORK_PROTOCOL_VERSION: scope["http_version"],
        **_server(headers.get("host", "")),
    }
    request = current_request()
    if request is not None:
        attributes[semconv.REQUEST_ID] = request.request_id
    if scope["client"] is not None:
        attributes[semconv.CLIENT_ADDRESS] = scope["client"][0]
    if "user-agent" in headers:
        attributes[semconv.USER_AGENT_ORIGINAL] = headers["user-agent"]
    return attributes


def end_span(
    span: trace.Span,
    method: str,
    route: str,
    status: int,
    error: ErrorKind | None,
    outcome: Outcome,
) -> None:
    """Set the attributes of a finished request. `error` may follow a status 200."""
    if not span.is_recording():
        return
    if route != UNMATCHED:
        span.update_name(f"{method} {route}")
        span.set_attribute(semconv.HTTP_ROUTE, route)
    if operation := operation_of(route):
        span.set_attribute(semconv.OPERATION, operation)
    span.set_attribute(semconv.HTTP_RESPONSE_STATUS_CODE, status)
    span.set_attribute(semconv.OUTCOME, outcome)
    if status == CLIENT_CLOSED_REQUEST:
        span.add_event(semconv.CLIENT_DISCONNECTED)
    if status >= 500 or (error is not None and HTTP_ERROR[error].status >= 500):
        span.set_attribute(semconv.ERROR_TYPE, str(status) if error is None else error)
        span.set_status(Status(StatusCode.ERROR))


def _server(host: str) -> dict[str, AttributeValue]:
    """Parse address and port of a Host header, which may be invalid."""
    try:
        parts = urlsplit(f"//{host}")
        found = {semconv.SERVER_ADDRESS: parts.hostname, semconv.SERVER_PORT: parts.port}
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if value is not None}
