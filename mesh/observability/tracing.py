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
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType, TracebackType

import grpc
import grpc.aio
from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from mesh.context import current_request
from mesh.errors import GRPC_STATUS, ErrorKind, MeshError
from mesh.observability import semconv, telemetry
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.recording.w3c import w3c_headers
from mesh.observability.semconv import Outcome

TRACER = trace.get_tracer("weir", telemetry.weir_version(), schema_url=semconv.SCHEMA_URL)

Attributes = Mapping[str, AttributeValue]

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
    current = trace.get_current_span()
    # As a context manager, an unrecorded span does nothing.
    return _stage(name, attributes) if telemetry.recorded(current) else current


@contextmanager
def _stage(name: str, attributes: Attributes | None) -> Iterator[Span]:
    with (
        TRACER.start_as_current_span(
            name,
            attributes={semconv.OUTCOME: Outcome.OK, **(attributes or {})},
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
        _recording_outcome(span),
    ):
        yield span


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
    above = parent or trace.get_current_span()
    if not telemetry.recorded(above):
        return above
    return _detached_stage(name, attributes, kind, parent)


@contextmanager
def _detached_stage(
    name: str, attributes: Attributes | None, kind: SpanKind, parent: Span | None
) -> Iterator[Span]:
    attributes = {semconv.OUTCOME: Outcome.OK, **(attributes or {})}
    context = None if parent is None else trace.set_span_in_context(parent)
    span = TRACER.start_span(name, context, kind, attributes)
    try:
        with _recording_outcome(span):
            yield span
    finally:
        span.end()


def server_span(
    service: str, method: str, metadata: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """The span of a served RPC, current inside the block; child of the metadata's `traceparent`."""
    unrecorded = telemetry.span_if_unrecorded(metadata)
    return _server_span(service, method, metadata) if unrecorded is None else unrecorded


@contextmanager
def _server_span(service: str, method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
    attributes = {**rpc_attributes(f"{service}/{method}"), semconv.OUTCOME: Outcome.OK}
    request = current_request()
    if request is not None:
        attributes[semconv.REQUEST_ID] = request.request_id
    with (
        telemetry.CallerContext(metadata),
        TRACER.start_as_current_span(
            f"{service}/{method}",
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
    ):
        yield span


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


def rpc_attributes(method: str, target: str = "") -> dict[str, AttributeValue]:
    """The attributes of an RPC's span at its start. `target` is HOST:PORT or any gRPC target."""
    attributes: dict[str, AttributeValue] = {
        semconv.RPC_SYSTEM_NAME: semconv.GRPC,
        semconv.RPC_METHOD: method,
    }
    if target:
        attributes.update(address_attributes(target))
    return attributes


def address_attributes(target: str) -> dict[str, AttributeValue]:
    """The attributes of a server. `target` is HOST:PORT, a URL or any gRPC target."""
    host, _, port = target.rpartition("/")[2].rpartition(":")
    attributes: dict[str, AttributeValue] = {semconv.SERVER_ADDRESS: host.strip("[]") or port}
    if host and port.isdigit():
        attributes[semconv.SERVER_PORT] = int(port)
    return attributes


def inject(metadata: list[tuple[str, str]], span: Span) -> None:
    """Add the span's `traceparent` to `metadata`."""
    if isinstance(span, telemetry.UnrecordedSpan):
        metadata.extend(span.headers.items())
        return
    if isinstance(span, RecordedSpan) and telemetry.propagates_only_w3c():
        metadata.extend(w3c_headers(span.get_span_context()))
        return
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    metadata.extend(carrier.items())


class ClientSpan:
    """The span of a streaming call, around the block that reads its responses.

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
        above = parent or trace.get_current_span()
        self._recorded = telemetry.recorded(above)
        if not self._recorded:
            self.span = above
        else:
            self.span = TRACER.start_span(
                method,
                context=None if parent is None else trace.set_span_in_context(parent),
                kind=SpanKind.CLIENT,
                attributes={**rpc_attributes(method, target), semconv.OUTCOME: Outcome.OK},
            )
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


@contextmanager
def _recording_outcome(span: Span) -> Iterator[None]:
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        kind = kind_of_cancellation()
        set_outcome(span, OUTCOME_OF[kind], kind)
        raise
    except MeshError as error:
        set_outcome(span, OUTCOME_OF[error.kind], error.kind, error.for_the_log)
        raise
    except Exception as error:
        set_outcome(span, Outcome.FAILED, type(error).__name__)
        raise


def _set_rpc_status(span: Span, code: grpc.StatusCode, description: str, failed: bool) -> None:
    span.set_attribute(semconv.RPC_RESPONSE_STATUS_CODE, code.name)
    if code is grpc.StatusCode.OK:
        return
    outcome = OUTCOME_OF[_KIND_OF_CODE.get(code, ErrorKind.INTERNAL)]
    span.set_attribute(semconv.OUTCOME, outcome)
    if failed:
        span.set_attribute(semconv.ERROR_TYPE, code.name)
        span.set_status(Status(StatusCode.ERROR, description))
