"""An OTLP collector for tests, over gRPC or HTTP, that stores the spans it receives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

GRPC, HTTP = "grpc", "http/protobuf"
"""Values of `OTEL_EXPORTER_OTLP_PROTOCOL`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A received span; ids are hexadecimal, times are nanoseconds since the Unix epoch."""

    service: str
    schema_url: str
    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, str]]

    @property
    def outcome(self) -> str:
        """The value of the attribute `weir.outcome`."""
        return str(self.attributes.get("weir.outcome"))

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return (self.end - self.start) / 1e9


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Stores exported spans. Thread-safe."""

    def __init__(self, endpoint: str = "", protocol: str = GRPC) -> None:
        self.endpoint = endpoint
        self.protocol = protocol
        self._spans: list[Span] = []
        self._changed = threading.Condition()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        """Handles OTLP's Export RPC."""
        spans = [
            _span(resource, scope, span)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self._spans += spans
            self._changed.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[Span]:
        """All spans received so far."""
        with self._changed:
            return list(self._spans)

    def wait(
        self, trace_id: str, complete: Callable[[list[Span]], bool], timeout: float = 20.0
    ) -> list[Span]:
        """Waits until a trace is `complete` or for `timeout` seconds; returns its spans."""
        end = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [span for span in self._spans if span.trace_id == trace_id]
                if complete(found) or time.monotonic() >= end:
                    return found
                self._changed.wait(max(0.0, end - time.monotonic()))


@contextmanager
def running_collector(protocol: str = GRPC) -> Iterator[Collector]:
    """Runs a collector on a free port of 127.0.0.1."""
    collector = Collector(protocol=protocol)
    with _over_http(collector) if protocol == HTTP else _over_grpc(collector):
        yield collector


@contextmanager
def _over_grpc(collector: Collector) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


@contextmanager
def _over_http(collector: Collector) -> Iterator[None]:
    handler = type("_BoundHandler", (_HttpHandler,), {"collector": collector})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, name="otlp-http")
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class _HttpHandler(BaseHTTPRequestHandler):
    collector: Collector
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.path == "/v1/traces", self.path
        body = self.rfile.read(int(self.headers["content-length"]))
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        response = self.collector.Export(request, None).SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def _span(
    resource: trace_pb2.ResourceSpans, scope: trace_pb2.ScopeSpans, span: trace_pb2.Span
) -> Span:
    return Span(
        service=_attributes(resource.resource.attributes)["service.name"],
        schema_url=scope.schema_url,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
        events=[(e.name, e.time_unix_nano, _attributes(e.attributes)) for e in span.events],
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return None if kind is None else getattr(value, kind)
