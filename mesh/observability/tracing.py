"""Spans, each of which ends in every outcome, and says in which.

    stage(name)            a piece of work inside a service
    detached_stage(name)   the same where the block is left and entered again by `yield`
    server_span            an RPC that is served
    ClientSpan             a streaming call, from its start to its status

The interceptors of opentelemetry-instrumentation-grpc lose a stream's end, so they serve unary
calls only, and in a subclass (`mesh.observability.unary_spans`, docs/decisions/0029).
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

# Statuses that are the server's fault; the others leave its span unset, as the semantic
# conventions for gRPC have it.
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
    """The current span of a piece of work. Nothing may be yielded from inside the block."""
    current = trace.get_current_span()
    # A span that is not recorded is a context manager that does nothing.
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
        _telling(span),
    ):
        yield span


def detached_stage(
    name: str,
    attributes: Attributes | None = None,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: Span | None = None,
) -> AbstractContextManager[Span]:
    """A span that is not made the current one, for blocks that a generator yields from.

    A suspended generator would leak its context to whoever runs meanwhile. `parent` None: the
    current span.
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
        with _telling(span):
            yield span
    finally:
        span.end()


def server_span(
    service: str, method: str, metadata: Mapping[str, str]
) -> AbstractContextManager[Span]:
    """The current span of an RPC being served, child of the `traceparent` in its metadata."""
    unrecorded = telemetry.span_if_unrecorded(metadata)
    return _server_span(service, method, metadata) if unrecorded is None else unrecorded


@contextmanager
def _server_span(service: str, method: str, metadata: Mapping[str, str]) -> Iterator[Span]:
    attributes = {**rpc_attributes(f"{service}/{method}"), semconv.OUTCOME: Outcome.OK}
    request = current_request()
    if request is not None:
        attributes[semconv.REQUEST_ID] = request.request_id
    with TRACER.start_as_current_span(
        f"{service}/{method}",
        context=propagate.extract(metadata),
        kind=SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def set_server_status(span: Span, code: grpc.StatusCode, description: str = "") -> None:
    """Records how the RPC ended; call it once, before the span ends."""
    if span.is_recording():
        _set_rpc_status(span, code, description, code in _SERVER_FAULTS)


def set_client_status(span: Span, code: grpc.StatusCode, description: str = "") -> None:
    """Records how the call ended. A call that was called off is no error: we wanted it so."""
    if span.is_recording():
        failed = code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED)
        _set_rpc_status(span, code, description, failed)


def set_outcome(span: Span, outcome: Outcome, error_type: str = "", description: str = "") -> None:
    """Says how a span's work ended; only what is our own fault is an error."""
    span.set_attribute(semconv.OUTCOME, outcome)
    if outcome in (Outcome.FAILED, Outcome.DEADLINE):
        span.set_attribute(semconv.ERROR_TYPE, error_type or outcome)
        span.set_status(Status(StatusCode.ERROR, description))


def rpc_attributes(method: str, target: str = "") -> dict[str, AttributeValue]:
    """What a span of an RPC says from its start. `target` is HOST:PORT, or any gRPC target."""
    attributes: dict[str, AttributeValue] = {
        semconv.RPC_SYSTEM_NAME: semconv.GRPC,
        semconv.RPC_METHOD: method,
    }
    if target:
        host, _, port = target.rpartition("/")[2].rpartition(":")
        attributes[semconv.SERVER_ADDRESS] = host.strip("[]") or port
        if host and port.isdigit():
            attributes[semconv.SERVER_PORT] = int(port)
    return attributes


def inject(metadata: list[tuple[str, str]], span: Span) -> None:
    """Adds the span's `traceparent`."""
    if isinstance(span, telemetry.UnrecordedSpan):
        metadata.extend(span.headers.items())
        return
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    metadata.extend(carrier.items())


class ClientSpan:
    """The span of a streaming call, around the block that reads it.

    It is not the current one. Its `traceparent` is added to `metadata`. Set `complete` once all
    has been read: to leave the block before is to call the call off. Or set `error`, if the call
    failed and the block is left in another way.
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
        """The block is left, by `error` if there is one."""
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
    """Why the current request's work was cancelled: its time was up, or its caller went."""
    request = current_request()
    out_of_time = request is not None and request.out_of_time
    return ErrorKind.DEADLINE if out_of_time else ErrorKind.CANCELLED


@contextmanager
def _telling(span: Span) -> Iterator[None]:
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
