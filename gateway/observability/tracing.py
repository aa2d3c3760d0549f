"""The server span of an HTTP request (OpenTelemetry semantic conventions for HTTP)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TypeGuard
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from gateway.http.errors import CLIENT_CLOSED_REQUEST
from gateway.http.headers import TRACE_REQUEST
from gateway.http.routes import UNMATCHED
from gateway.observability.metrics import operation_of
from mesh.context import current_request
from mesh.errors import HTTP_ERROR, ErrorKind
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.recording.w3c import from_outside
from mesh.observability.semconv import Outcome


def http_span(scope: Scope, headers: Mapping[str, str]) -> AbstractContextManager[trace.Span]:
    """Start the current span of a request, a child of the caller's `traceparent`."""
    headers = from_outside(headers)
    forces = headers.get(TRACE_REQUEST) == "1"
    unrecorded = None if forces and not telemetry.silent else telemetry.span_if_unrecorded(headers)
    return HttpSpan(scope, headers, forces) if unrecorded is None else unrecorded


class HttpSpan(tracing.EntrySpan):
    """The span of a request. Its attributes are set at the end, if it may be exported then."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope, headers: Mapping[str, str], force: bool) -> None:
        super().__init__(scope["method"], headers, force=force)
        self._scope = scope

    def __exit__(self, *error: object) -> None:
        span = self.span
        if needs_attributes(span):
            found = _attributes(self._scope, self._headers)
            request = current_request()
            if request is not None:
                found[semconv.REQUEST_ID] = request.request_id
            span.attributes = found | span.attributes
        super().__exit__(*error)


def needs_attributes(span: trace.Span) -> TypeGuard[RecordedSpan]:
    """Whether the span may be exported; building its attributes costs more than the span."""
    return not telemetry.silent and isinstance(span, RecordedSpan) and span.needs_attributes


def _attributes(scope: Scope, headers: Mapping[str, str]) -> dict[str, AttributeValue]:
    """Attributes that are known when the request arrives.

    The query string is not recorded: it contains what the user searches for.
    """
    attributes: dict[str, AttributeValue] = {
        semconv.OUTCOME: Outcome.OK,
        semconv.HTTP_REQUEST_METHOD: scope["method"],
        semconv.URL_SCHEME: scope["scheme"],
        semconv.URL_PATH: scope["path"],
        semconv.NETWORK_PROTOCOL_VERSION: scope["http_version"],
        **_server(headers.get("host", "")),
    }
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
    if not needs_attributes(span):
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
