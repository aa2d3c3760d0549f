"""Parses OTLP trace exports, and receives them over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from mesh.observability import semconv
from mesh.rpc.targets import bind_error
from scripts.traceview.spans import Event, Span, Value

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

AddSpans = Callable[[Iterable[Span]], None]


def parse(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """Parses the spans of an export."""
    for resource in request.resource_spans:
        service = str(_values(resource.resource.attributes).get(semconv.SERVICE_NAME, "unknown"))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(service, span)


def parse_bytes(body: bytes) -> Iterator[Span]:
    """Parses the body of an OTLP/HTTP export. Raises google.protobuf's DecodeError."""
    return parse(ExportTraceServiceRequest.FromString(body))


def empty_response() -> bytes:
    """The response body of an OTLP/HTTP export."""
    return bytes(ExportTraceServiceResponse().SerializeToString())


@contextmanager
def grpc_receiver(address: str, add: AddSpans) -> Iterator[int]:
    """Receives exports at `address`, HOST:PORT; yields the port. Raises AddressError."""
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # With SO_REUSEPORT, a second receiver could share the port and get half of the spans.
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(4, "otlp"), options=options)
    add_TraceServiceServicer_to_server(_Servicer(add), server)  # type: ignore[no-untyped-call]
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise bind_error(address, error) from None
    server.start()
    try:
        yield port
    finally:
        server.stop(1).wait()


class _Servicer(TraceServiceServicer):
    def __init__(self, add: AddSpans) -> None:
        self._add = add

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        self._add(list(parse(request)))
        return ExportTraceServiceResponse()


def _span(service: str, span: trace_pb2.Span) -> Span:
    kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
    return Span(
        service=service,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=kind,
        start=span.start_time_unix_nano,
        end=max(span.start_time_unix_nano, span.end_time_unix_nano),
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        message=span.status.message,
        attributes=_values(span.attributes),
        events=tuple(
            Event(event.name, event.time_unix_nano, _values(event.attributes))
            for event in span.events
        ),
        links=tuple(link.trace_id.hex() for link in span.links),
    )


def _values(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "string_value" | "bool_value" | "int_value" | "double_value" as plain:
            parsed: Value = getattr(value, plain)
            return parsed
        case other:
            return f"<{other}>"
