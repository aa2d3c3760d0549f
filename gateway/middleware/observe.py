"""The outermost middleware: request id, deadline, span, metrics, access log, error responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.anthropic.errors import error_response as messages_error
from gateway.anthropic.errors import is_for_messages
from gateway.http.errors import CLIENT_CLOSED_REQUEST, ClientDisconnected, HttpError, error_response
from gateway.http.headers import (
    ANTHROPIC_REQUEST_ID,
    IGNORED_FIELDS,
    REQUEST_ID,
    TOOL_PROMPT,
    TRACE_ID,
    TRACE_SAMPLED,
    headers_of,
)
from gateway.http.routes import UNWATCHED_PATHS, route_of
from gateway.middleware.origin import cors_headers
from gateway.observability import metrics
from gateway.observability.request_record import NEVER_SLOW, RequestRecord, SlowThresholds
from gateway.observability.tracing import end_span, http_span
from gateway.validation.ignored_fields import ignored_header
from mesh.context import RequestContext, accept_request_id, use_request
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.observability.recording.current import current_span
from mesh.observability.telemetry import trace_id, unrecorded_span

logger = logging.getLogger("gateway.access")

KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class ObserveMiddleware:
    """Runs each request in its context and turns every exception into a response."""

    def __init__(
        self,
        app: ASGIApp,
        timeout_seconds: float,
        first_token_seconds: float | None = None,
        idle_seconds: float | None = None,
        slow: SlowThresholds = NEVER_SLOW,
    ) -> None:
        """Timeouts of the whole response, of its first token and between tokens; None: no limit.

        The traces of requests that reach a `slow` threshold are kept.
        """
        self._slow = slow
        self._app = app
        self._timeout_seconds = timeout_seconds
        self._first_token_seconds = first_token_seconds
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(slow=self._slow)
        record.attach(scope)
        headers = headers_of(scope)
        request = RequestContext(
            request_id=accept_request_id(headers.get(REQUEST_ID)),
            deadline=record.arrived + self._timeout_seconds,
            idle_timeout=self._idle_seconds,
        )
        if self._first_token_seconds is not None:
            request.first_token_deadline = record.arrived + self._first_token_seconds
        watched = scope["path"] not in UNWATCHED_PATHS
        span = http_span(scope, headers) if watched else unrecorded_span()
        with use_request(request), span:
            responder = _Responder(scope, send, request.request_id, trace_id())
            if not watched:
                await self._respond(scope, receive, responder, record)
                return
            with metrics.NUM_REQUESTS_RUNNING.track_inprogress():
                await self._respond(scope, receive, responder, record)
                _record(scope, record, request)

    async def _respond(
        self, scope: Scope, receive: Receive, responder: _Responder, record: RequestRecord
    ) -> None:
        try:
            await self._app(scope, receive, responder.send)
        except ClientDisconnected:
            record.status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            failure = _as_failure(error)
            record.fail(failure)
            if not responder.started:
                respond = messages_error if is_for_messages(scope["path"]) else error_response
                await respond(failure)(scope, receive, responder.send)
        record.status = record.status or responder.status


class _Responder:
    """Sends a response with the request's ids in its headers, and records its status."""

    def __init__(self, scope: Scope, send: Send, request_id: str, trace_id: str) -> None:
        self._scope = scope
        self._send = send
        self._ids = {REQUEST_ID: request_id, TRACE_ID: trace_id}
        if is_for_messages(scope["path"]):
            self._ids[ANTHROPIC_REQUEST_ID] = request_id
        self.status = 0

    @property
    def started(self) -> bool:
        return self.status != 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *_encoded(self._headers())]
        await self._send(message)

    def _headers(self) -> dict[str, str]:
        """Headers that the gateway adds to the response; endpoints set none of these."""
        headers = {**self._ids, **cors_headers(self._scope)}
        record = RequestRecord.of(self._scope)
        if record.ignored:
            headers[IGNORED_FIELDS] = ignored_header(record.ignored)
        if record.tool_prompt:
            headers[TOOL_PROMPT] = record.tool_prompt
        traced = record.is_traced()
        if traced is not None:
            headers[TRACE_SAMPLED] = "true" if traced else "false"
        return headers


def _encoded(headers: Mapping[str, str]) -> Iterator[tuple[bytes, bytes]]:
    return ((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())


def _as_failure(error: Exception) -> MeshError | HttpError:
    if isinstance(error, MeshError | HttpError):
        return error
    logger.error("unexpected error", exc_info=error)
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)


def _record(scope: Scope, record: RequestRecord, request: RequestContext) -> None:
    duration = time.monotonic() - record.arrived
    record.end()
    method = scope["method"] if scope["method"] in KNOWN_METHODS else "_OTHER"
    route, status = route_of(scope), record.status
    end_span(current_span(), method, route, status, record.error, record.outcome)
    metrics.observe_request(
        route, method, status, duration, model=record.model, error=record.error_type
    )
    if logger.isEnabledFor(logging.INFO):
        fields = {"method": method, "route": route, "status": status, "duration_seconds": duration}
        logger.info("request finished", extra={**fields, **request.fields})
