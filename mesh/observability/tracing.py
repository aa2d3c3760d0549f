"""Creates spans and records their outcome, also for failures and cancellation.

    stage(name)            a piece of work inside a service
    detached_stage(name)   the same, for a block that contains `yield`
    server_span            a served RPC
    ClientSpan             a streaming call, from its start to its status

The interceptors of opentelemetry-instrumentation-grpc do not record the final status of streams.
They are used for unary calls only, in a subclass (`mesh.observability.unary_spans`,
docs/decisions/0029).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from functools import lru_cache
from types import MappingProxyType, TracebackType

import grpc
import grpc.aio
from opentelemetry import context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from mesh.context import current_request
from mesh.errors import GRPC_STATUS, ErrorKind, MeshError
from mesh.observability import semconv, telemetry
from mesh.observability.recording.current import current_span, make_current, restore_current
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.recording.w3c import w3c_headers
from mesh.observability.semconv import Outcome

Attributes = Mapping[str, AttributeValue]

MAX_CACHED_NAMES = 1024
"""Addresses of servers and methods of calls whose attributes are remembered."""

_OK: Attributes = {semconv.OUTCOME: Outcome.OK}

OUTCOME_OF: Mapping[ErrorKind, Outcome] = MappingProxyType(
    {
        ErrorKind.INVALID_REQUEST: Outcome.INVALID,
        ErrorKind.CONTEXT_TOO_LONG: Outcome.INVALID,
        ErrorKind.UNAUTHENTICATED: Outcome.INVALID,
        ErrorKind.MODEL_NOT_FOUND: Outcome.INVALID,
        ErrorKind.OVERLOADED: Outcome.REFUSED,
        ErrorKind.UNAVAILABLE: Outcome.FAILED,
        ErrorKind.DEADLINE: Outcome.DEADLINE,
        ErrorKind.CANCELLED: Outcome.CANCELLED,
        ErrorKind.UNIMPLEMENTED: Outcome.INVALID,
        ErrorKind.INTERNAL: Outcome.FAILED,
    }
)

_KIND_OF_CODE = {code: kind for kind, code in GRPC_STATUS.items()}

# Status codes for which a span has the status Error, by the conventions for servers (gRPC).
_SERVER_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


def stage(name: str, attributes: Attributes | None = None) -> AbstractContextManager[Span]:
    """A span of a piece of work, current inside the block. The block must not contain `yield`."""
    current = current_span()
    # As a context manager, an unrecorded span does nothing.
    return (
        CurrentStage(_start(name, current, attributes)) if telemetry.recorded(current) else current
    )


def detached_stage(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Span | None = None,
) -> AbstractContextManager[Span]:
    """A span that is not made current, for blocks of generators that contain `yield`.

    A suspended generator would leak its context to its caller. `parent` None: the current span.
    """
    above = parent or current_span()
    if not telemetry.recorded(above):
        return above
    return open_stage(name, above, attributes, kind)


def open_stage(
    name: str,
    parent: Span,
    attributes: Attributes | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Stage:
    """The same, of a parent whose children are recorded."""
    return Stage(_start(name, parent, attributes, kind))


class Stage:
    """Ends a span with its block, and records the outcome of an exception that leaves the block."""

    __slots__ = ("span",)

    def __init__(self, span: Span) -> None:
        self.span = span

    def __enter__(self) -> Span:
        return self.span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            _record_failure(self.span, error)
        self.span.end()


class CurrentStage(Stage):
    """The same, and makes the span current inside the block."""

    __slots__ = ("_token",)

    def __enter__(self) -> Span:
        self._token = make_current(self.span)
        return self.span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        restore_current(self._token)
        super().__exit__(kind, error, traceback)


def _start(
    name: str,
    parent: Span,
    attributes: Attributes | None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Span:
    """A span that is successful until another outcome is recorded."""
    attributes = {**_OK, **attributes} if attributes else _OK
    return _start_span(name, parent, kind, attributes)


def _start_span(name: str, parent: Span, kind: SpanKind, attributes: Attributes) -> Span:
    if isinstance(parent, RecordedSpan):
        return parent.child(name, kind, attributes)
    return telemetry.tracer.begin(name, parent.get_span_context(), kind, attributes)


def server_span(
    service: str, method: str, metadata: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """The span of a served RPC, current inside the block; child of the metadata's `traceparent`."""
    unrecorded = telemetry.span_if_unrecorded(metadata)
    if unrecorded is not None:
        return unrecorded
    name = f"{service}/{method}"
    request = current_request()
    attributes = _rpc_start(name)
    if request is not None:
        attributes = {**attributes, semconv.REQUEST_ID: request.request_id}
    return EntrySpan(name, metadata, attributes)


class EntrySpan:
    """The first span of a request in this process, current inside the block.

    It is a child of the span in the headers of the request.
    """

    __slots__ = ("_attached", "_attributes", "_force", "_headers", "_name", "_token", "span")

    def __init__(
        self,
        name: str,
        headers: Mapping[str, str],
        attributes: Attributes | None = None,
        *,
        force: bool = False,
    ) -> None:
        """`force`: export the trace whatever the sampler decides."""
        self._name = name
        self._headers = headers
        self._attributes = attributes
        self._force = force

    def __enter__(self) -> Span:
        caller, found = telemetry.caller_of(self._headers)
        self._attached: Token[context.Context] | None = None
        if found is not None:
            self._attached = context.attach(found)
        self.span = telemetry.tracer.begin(
            self._name, caller, SpanKind.SERVER, self._attributes, force=self._force
        )
        self._token = make_current(self.span)
        return self.span

    def __exit__(self, *_: object) -> None:
        restore_current(self._token)
        self.span.end()
        if self._attached is not None:
            context.detach(self._attached)


def set_server_status(span: Span, code: grpc.StatusCode, description: str = "") -> None:
    """Record the status of the RPC; call it once, before the span ends."""
    if span.is_recording():
        _set_rpc_status(span, code, description, code in _SERVER_FAULTS)


def set_client_status(span: Span, code: grpc.StatusCode, description: str = "") -> None:
    """Record the status of the call.

    The same statuses are errors as of a served RPC: a service graph would count refused and invalid
    requests as failures of the called service otherwise, and cancelled ones were cancelled here.
    """
    if span.is_recording():
        _set_rpc_status(span, code, description, code in _SERVER_FAULTS)


def set_outcome(span: Span, outcome: Outcome, error_type: str = "", description: str = "") -> None:
    """Record the outcome of a span; only FAILED and DEADLINE set its status to Error."""
    span.set_attribute(semconv.OUTCOME, outcome)
    if outcome in (Outcome.FAILED, Outcome.DEADLINE):
        span.set_attribute(semconv.ERROR_TYPE, error_type or outcome)
        span.set_status(Status(StatusCode.ERROR, description))


@lru_cache(MAX_CACHED_NAMES)
def _rpc_start(method: str, target: str = "") -> Attributes:
    """The attributes of an RPC's span at its start. `target` is HOST:PORT or any gRPC target."""
    attributes: Attributes = {
        **_OK,
        semconv.RPC_SYSTEM_NAME: semconv.GRPC,
        semconv.RPC_METHOD: method,
    }
    return {**attributes, **address_attributes(target)} if target else attributes


@lru_cache(MAX_CACHED_NAMES)
def address_attributes(target: str) -> Attributes:
    """The attributes of a server. `target` is HOST:PORT, a URL or any gRPC target."""
    host, _, port = target.rpartition("/")[2].rpartition(":")
    attributes: dict[str, AttributeValue] = {semconv.SERVER_ADDRESS: host.strip("[]") or port}
    if host and port.isdigit():
        attributes[semconv.SERVER_PORT] = int(port)
    return attributes


def inject(metadata: list[tuple[str, str]], span: Span) -> None:
    """Add the span's `traceparent` to `metadata`."""
    is_recorded = not telemetry.silent and isinstance(span, RecordedSpan)
    if not is_recorded and isinstance(span, telemetry.UnrecordedSpan):
        metadata.extend(span.headers.items())
        return
    if isinstance(span, RecordedSpan) and telemetry.propagates_only_w3c():
        metadata.extend(w3c_headers(span))
        return
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    metadata.extend(carrier.items())


def call_span(method: str, target: str = "", parent: Span | None = None) -> Span:
    """Start the span of a call; `method` is `package.Service/Method`.

    `parent` None: the current span.
    """
    start = _rpc_start(method, target)
    return _start_span(method, parent or current_span(), SpanKind.CLIENT, start)


class ClientSpan:
    """The span of a call, around the block that reads its responses.

    It is not made current; its `traceparent` is added to `metadata`. Set `complete` when all
    responses have been read: leaving the block earlier cancels the call. Set `error` if the call
    failed but the block is not left by that exception.
    """

    def __init__(
        self,
        method: str,
        metadata: list[tuple[str, str]],
        *,
        target: str = "",
        parent: Span | None = None,
    ) -> None:
        """`method` is `package.Service/Method`; `parent` None: the current span."""
        self.complete = False
        self.error: MeshError | None = None
        above = parent or current_span()
        self._recorded = telemetry.recorded(above)
        self.span = above
        if self._recorded:
            self.span = call_span(method, target, above)
        inject(metadata, self.span)

    def __enter__(self) -> ClientSpan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """End the span; `error` is the exception that left the block."""
        if not self._recorded:
            return
        code, description = grpc.StatusCode.OK, ""
        error = self.error or error
        if isinstance(error, MeshError):
            code, description = GRPC_STATUS[error.kind], error.for_the_log
        elif isinstance(error, Exception):
            code, description = grpc.StatusCode.INTERNAL, type(error).__name__
        elif not self.complete:
            code = GRPC_STATUS[kind_of_cancellation()]
        set_client_status(self.span, code, description)
        self.span.end()


def kind_of_cancellation() -> ErrorKind:
    """Why the current request was cancelled: DEADLINE, or CANCELLED by the caller."""
    request = current_request()
    out_of_time = request is not None and request.out_of_time
    return ErrorKind.DEADLINE if out_of_time else ErrorKind.CANCELLED


def _record_failure(span: Span, error: BaseException) -> None:
    """Record the outcome of work that this exception has ended."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        kind = kind_of_cancellation()
        set_outcome(span, OUTCOME_OF[kind], kind)
    elif isinstance(error, MeshError):
        set_outcome(span, OUTCOME_OF[error.kind], error.kind, error.for_the_log)
    elif isinstance(error, Exception):
        set_outcome(span, Outcome.FAILED, type(error).__name__)


def _set_rpc_status(span: Span, code: grpc.StatusCode, description: str, failed: bool) -> None:
    if code is grpc.StatusCode.OK:
        span.set_attribute(semconv.RPC_RESPONSE_STATUS_CODE, "OK")
        return
    span.set_attribute(semconv.RPC_RESPONSE_STATUS_CODE, code.name)
    outcome = OUTCOME_OF[_KIND_OF_CODE.get(code, ErrorKind.INTERNAL)]
    span.set_attribute(semconv.OUTCOME, outcome)
    if failed:
        span.set_attribute(semconv.ERROR_TYPE, code.name)
        span.set_status(Status(StatusCode.ERROR, description))
