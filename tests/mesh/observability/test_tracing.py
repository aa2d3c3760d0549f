"""The end of spans: stages and the span of a streaming call, for each outcome."""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability import tracing
from mesh.observability.recording.current import current_span
from mesh.observability.tracing import ClientSpan

METHOD = "mesh.v1.TokenizerService/GetTokenizer"


def test_a_call_that_is_read_to_its_end_is_ok(spans: InMemorySpanExporter) -> None:
    """Name and attributes are those of the RPC conventions; the status stays unset."""
    metadata: list[tuple[str, str]] = []
    with ClientSpan(METHOD, metadata, target="dns:///[::1]:50052") as span:
        span.complete = True
    [ended] = spans.get_finished_spans()
    assert ended.name == METHOD
    assert ended.kind is SpanKind.CLIENT
    assert ended.status.status_code is StatusCode.UNSET
    assert dict(ended.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": METHOD,
        "rpc.response.status_code": "OK",
        "server.address": "::1",
        "server.port": 50052,
        "weir.outcome": "ok",
    }
    context = ended.get_span_context()
    assert context is not None
    ids = f"{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert metadata == [("traceparent", f"00-{ids}")]


@pytest.mark.parametrize(
    ("error", "code", "outcome"),
    [
        (MeshError(ErrorKind.UNAVAILABLE, "gone"), "UNAVAILABLE", "failed"),
        (MeshError(ErrorKind.OVERLOADED, "full"), "RESOURCE_EXHAUSTED", "refused"),
        (MeshError(ErrorKind.INVALID_REQUEST, "bad"), "INVALID_ARGUMENT", "invalid"),
        (MeshError(ErrorKind.DEADLINE, "late"), "DEADLINE_EXCEEDED", "deadline"),
        (MeshError(ErrorKind.CANCELLED, "off"), "CANCELLED", "cancelled"),
        (RuntimeError("bug"), "INTERNAL", "failed"),
        (asyncio.CancelledError(), "CANCELLED", "cancelled"),
        (GeneratorExit(), "CANCELLED", "cancelled"),
    ],
)
def test_the_status_of_a_call_is_recorded(
    spans: InMemorySpanExporter,
    error: BaseException,
    code: str,
    outcome: str,
) -> None:
    """Failures of the server are errors at the client; refusals and cancellations are not."""
    with pytest.raises(type(error)), ClientSpan(METHOD, []):
        raise error
    [ended] = spans.get_finished_spans()
    attributes = dict(ended.attributes or {})
    assert attributes["rpc.response.status_code"] == code
    assert attributes["weir.outcome"] == outcome
    failed = outcome in ("failed", "deadline")
    assert ended.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
    assert attributes.get("error.type") == (code if failed else None)
    assert ended.status.description != "bad"  # it may quote the request


def test_a_stream_that_is_left_early_is_cancelled(spans: InMemorySpanExporter) -> None:
    """Leaving the block before the end is a cancellation, without an exception."""
    with ClientSpan(METHOD, []):
        pass
    [ended] = spans.get_finished_spans()
    assert (ended.attributes or {})["rpc.response.status_code"] == "CANCELLED"


def test_the_span_is_not_made_current(spans: InMemorySpanExporter) -> None:
    """A suspended generator must not leak its context; the parent stays current."""
    before = current_span()
    with ClientSpan(METHOD, []):
        assert current_span() is before
    with tracing.detached_stage("generation"):
        assert current_span() is before


@pytest.mark.parametrize(
    ("error", "status", "outcome", "error_type"),
    [
        (None, StatusCode.UNSET, "ok", None),
        (MeshError(ErrorKind.OVERLOADED, "full"), StatusCode.UNSET, "refused", None),
        (MeshError(ErrorKind.INVALID_REQUEST, "bad"), StatusCode.UNSET, "invalid", None),
        (MeshError(ErrorKind.DEADLINE, "late"), StatusCode.ERROR, "deadline", "deadline"),
        (MeshError(ErrorKind.UNAVAILABLE, "gone"), StatusCode.ERROR, "failed", "unavailable"),
        (RuntimeError("bug"), StatusCode.ERROR, "failed", "RuntimeError"),
        (asyncio.CancelledError(), StatusCode.UNSET, "cancelled", None),
        (GeneratorExit(), StatusCode.UNSET, "cancelled", None),
    ],
)
@pytest.mark.parametrize("make", [tracing.stage, tracing.detached_stage])
def test_a_stage_has_an_outcome(
    spans: InMemorySpanExporter,
    make: type[tracing.stage],
    error: BaseException | None,
    status: StatusCode,
    outcome: str,
    error_type: str | None,
) -> None:
    """Only own failures are errors; the details of a bug are in the log only."""
    expected = nullcontext() if error is None else pytest.raises(type(error))
    with expected, make("encode"):
        if error is not None:
            raise error
    [ended] = spans.get_finished_spans()
    attributes = dict(ended.attributes or {})
    assert ended.status.status_code is status
    assert attributes["weir.outcome"] == outcome
    assert attributes.get("error.type") == error_type
    assert not ended.events
    assert ended.status.description != "bug"


def test_a_cancellation_at_the_deadline_counts_as_the_deadline(spans: InMemorySpanExporter) -> None:
    """gRPC cancels for both reasons; the request's deadline distinguishes them."""
    for deadline in (time.monotonic(), time.monotonic() + 60):
        request = RequestContext(request_id="r", deadline=deadline)
        with (
            use_request(request),
            pytest.raises(asyncio.CancelledError),
            ClientSpan(METHOD, []),
            tracing.stage("encode"),
        ):
            raise asyncio.CancelledError
    outcomes = [(span.attributes or {})["weir.outcome"] for span in spans.get_finished_spans()]
    assert outcomes == ["deadline", "deadline", "cancelled", "cancelled"]


def test_a_stage_may_be_given_its_parent(spans: InMemorySpanExporter) -> None:
    """Instead of the current span."""
    with (
        tracing.detached_stage("generation") as parent,
        tracing.detached_stage("choose", parent=parent),
    ):
        pass
    choose, generation = spans.get_finished_spans()
    assert choose.parent == generation.get_span_context()
    with tracing.detached_stage("root", parent=INVALID_SPAN):
        pass
    assert spans.get_finished_spans()[-1].parent is None
