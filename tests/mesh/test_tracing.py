"""The span of a streaming call, by how the call ends."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mesh.errors import ErrorKind, MeshError
from mesh.tracing import client_span

METHOD = "/mesh.v1.TokenizerService/GetTokenizer"


def test_a_call_that_ends_well_is_ok_by_its_code(spans: InMemorySpanExporter) -> None:
    """Name and attributes are those of the RPC conventions; the status stays unset."""
    metadata: list[tuple[str, str]] = []
    with client_span(METHOD, metadata) as span:
        context = span.get_span_context()
    [ended] = spans.get_finished_spans()
    assert ended.name == METHOD.lstrip("/")
    assert ended.kind is SpanKind.CLIENT
    assert ended.status.status_code is StatusCode.UNSET
    assert dict(ended.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "mesh.v1.TokenizerService",
        "rpc.method": "GetTokenizer",
        "rpc.grpc.status_code": 0,
    }
    ids = f"{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert metadata == [("traceparent", f"00-{ids}")]


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (MeshError(ErrorKind.UNAVAILABLE, "gone"), 14, StatusCode.ERROR),
        (MeshError(ErrorKind.INVALID_REQUEST, "bad"), 3, StatusCode.ERROR),
        (RuntimeError("bug"), 13, StatusCode.ERROR),
        (asyncio.CancelledError(), 1, StatusCode.UNSET),
        (GeneratorExit(), 1, StatusCode.UNSET),
    ],
)
def test_the_status_tells_how_a_call_ended(
    spans: InMemorySpanExporter, error: BaseException, code: int, status: StatusCode
) -> None:
    """Failures are errors on the caller's side; a cancellation is not."""
    with pytest.raises(type(error)), client_span(METHOD, []):
        raise error
    [ended] = spans.get_finished_spans()
    assert (ended.attributes or {})["rpc.grpc.status_code"] == code
    assert ended.status.status_code is status


def test_the_span_is_not_made_current(spans: InMemorySpanExporter) -> None:
    """A suspended generator must not leak its context; the parent stays."""
    before = trace.get_current_span()
    with client_span(METHOD, []):
        assert trace.get_current_span() is before
