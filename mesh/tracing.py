"""Spans of the gRPC hops.

The client interceptors of opentelemetry-instrumentation-grpc make the spans of unary calls. On
streams and on the server they lose cancellation, preset the status to OK and detach the context
in another task, so the spans of those are made here (docs/decisions/0006).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.grpc import filters
from opentelemetry.trace import SpanKind, Status, StatusCode

from mesh.errors import GRPC_STATUS, ErrorKind, MeshError

TRACER = trace.get_tracer("weir.mesh")

not_health_check = filters.negate(filters.health_check())
"""Health checks come every second from every neighbour; nobody wants their spans."""

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


@contextmanager
def server_span(
    service: str, method: str, context: grpc.aio.ServicerContext[Any, Any]
) -> Iterator[trace.Span]:
    """The current span of an RPC being served, child of the caller's `traceparent`."""
    carrier = {key: value for key, value in context.invocation_metadata() or ()}
    with TRACER.start_as_current_span(
        f"{service}/{method}",
        context=propagate.extract(carrier),
        kind=SpanKind.SERVER,
        attributes=_attributes(service, method),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def set_server_status(span: trace.Span, code: grpc.StatusCode, description: str = "") -> None:
    """Records how the RPC ended; call it once, before the span ends."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code in _SERVER_FAULTS:
        span.set_status(Status(StatusCode.ERROR, description))


@contextmanager
def client_span(method: str, metadata: list[tuple[str, str]]) -> Iterator[trace.Span]:
    """The client span of a streaming call; adds its `traceparent` to `metadata`.

    `method` is the full name, `/package.Service/Method`. The span is not made the current one:
    a generator that is suspended inside the block must not leak its context.
    """
    service, _, name = method.lstrip("/").partition("/")
    span = TRACER.start_span(
        f"{service}/{name}", kind=SpanKind.CLIENT, attributes=_attributes(service, name)
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    metadata.extend(carrier.items())
    code = grpc.StatusCode.OK
    try:
        yield span
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except MeshError as error:
        code = GRPC_STATUS[error.kind]
        span.set_status(Status(StatusCode.ERROR, error.message))
        raise
    except Exception as error:
        code = GRPC_STATUS[ErrorKind.INTERNAL]
        span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        span.end()


def _attributes(service: str, method: str) -> dict[str, str]:
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
