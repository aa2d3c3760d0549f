"""Span, metrics and access line of a served RPC, for each outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import REGISTRY

from mesh.context import RequestContext, annotate, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability import telemetry
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.interceptor import _abort
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import Served, eventually, serve
from tests.mesh.rpc.test_server import SERVICE, FakeTokenizer

Stub: TypeAlias = "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"


class AnnotatingTokenizer(FakeTokenizer):
    """Adds fields to the access line."""

    async def Encode(self, request, context):  # type: ignore[no-untyped-def]
        annotate(num_tokens=3)
        return await super().Encode(request, context)


@pytest.fixture
async def tokenizer() -> AnnotatingTokenizer:
    return AnnotatingTokenizer()


@pytest.fixture
async def served(
    tokenizer: AnnotatingTokenizer, no_tasks_left: None, spans: InMemorySpanExporter
) -> AsyncIterator[Served]:
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, tokenizer)) as served:
        yield served


@pytest.fixture
def stub(served: Served) -> Stub:
    return tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)


async def server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    def ended() -> list[ReadableSpan]:
        return [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]

    await eventually(lambda: bool(ended()), "server span")
    [span] = ended()
    return span


@pytest.mark.parametrize(
    ("text", "code", "status", "kind"),
    [
        ("good", grpc.StatusCode.OK, StatusCode.UNSET, None),
        ("bad", grpc.StatusCode.INVALID_ARGUMENT, StatusCode.UNSET, "invalid_request"),
        ("full", grpc.StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNSET, "overloaded"),
        ("bug", grpc.StatusCode.INTERNAL, StatusCode.ERROR, "internal"),
    ],
)
async def test_the_outcome_is_in_span_metrics_and_log(
    stub: Stub,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    text: str,
    code: grpc.StatusCode,
    status: StatusCode,
    kind: str | None,
) -> None:
    """Only the server's failures set the span to Error; each call is counted and logged once."""
    caplog.set_level("INFO", "mesh.rpc")
    labels = {"rpc_service": SERVICE, "rpc_method": "Encode", "code": code.name}
    errors = {"rpc_service": SERVICE, "kind": kind or ""}
    calls_before = REGISTRY.get_sample_value("mesh_rpc_server_duration_seconds_count", labels) or 0
    errors_before = REGISTRY.get_sample_value("mesh_errors_total", errors) or 0
    with nullcontext() if kind is None else pytest.raises(MeshError):
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text=text))
    span = await server_span(spans)
    lines = [record for record in caplog.records if record.getMessage() == "request finished"]
    calls = REGISTRY.get_sample_value("mesh_rpc_server_duration_seconds_count", labels)
    assert (span.attributes or {})["rpc.response.status_code"] == code.name
    assert span.status.status_code is status
    assert calls == calls_before + 1
    assert [(vars(line)["code"], vars(line)["num_tokens"]) for line in lines] == [(code.name, 3)]
    if kind is not None:
        assert REGISTRY.get_sample_value("mesh_errors_total", errors) == errors_before + 1


async def test_the_span_is_a_child_of_the_callers(stub: Stub, spans: InMemorySpanExporter) -> None:
    """`traceparent` propagates the trace; for streams the parent is their client span."""
    with telemetry.tracer.start_as_current_span("root") as root:
        request = tokenizer_pb2.GetTokenizerRequest()
        async with open_stream(stub.GetTokenizer, request) as responses:
            await anext(responses)
    span = await server_span(spans)
    [client] = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert client.parent == root.get_span_context()
    assert span.parent is not None
    assert span.parent.span_id == client.get_span_context().span_id
    assert span.name == f"{SERVICE}/GetTokenizer"


async def test_a_cancelled_stream_ends_as_cancelled(
    stub: Stub, spans: InMemorySpanExporter
) -> None:
    """A caller that disconnects is not an error on either side."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
    span = await server_span(spans)
    assert (span.attributes or {})["rpc.response.status_code"] == "CANCELLED"
    assert span.status.status_code is StatusCode.UNSET


async def test_a_call_past_its_deadline_ends_as_deadline_exceeded(
    stub: Stub, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """Unlike a caller that disconnects, a passed deadline is an error."""
    caplog.set_level("INFO", "mesh.rpc")
    with pytest.raises(MeshError):
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest(), timeout=0.5)
    span = await server_span(spans)
    [line] = [record for record in caplog.records if record.getMessage() == "request finished"]
    assert (span.attributes or {})["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert span.status.status_code is StatusCode.ERROR
    assert vars(line)["code"] == "DEADLINE_EXCEEDED"


async def test_a_drain_ends_streams_as_unavailable(
    served: Served, stub: Stub, spans: InMemorySpanExporter
) -> None:
    """A call that the drain aborts ends with an error whose description says so."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
        assert await served.server.drain(timeout=0) == 1
    span = await server_span(spans)
    assert (span.attributes or {})["rpc.response.status_code"] == "UNAVAILABLE"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "aborted by the drain"


async def test_a_bad_request_id_is_replaced(stub: Stub, tokenizer: AnnotatingTokenizer) -> None:
    """An invalid id reaches neither the logs nor the next service."""
    with use_request(RequestContext(request_id="two words")):
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="a"))
    [seen] = tokenizer.seen
    assert len(seen.request_id) == 32


async def test_no_call_stays_active(served: Served, stub: Stub) -> None:
    """The number of running calls, which a drain waits for, returns to 0."""
    await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="a"))
    interceptor = served.server.interceptor
    await asyncio.wait_for(interceptor.wait_idle(), 5)
    assert interceptor.num_active == 0


class Disconnected:
    """The context of a call whose deadline has passed: nothing can be sent."""

    async def abort(self, *status: object) -> None:
        raise grpc.aio.UsageError("the call has ended")


async def test_an_error_without_a_waiting_caller_is_a_cancellation() -> None:
    """Deadlines pass at both ends together; otherwise gRPC would log each such call as a bug."""
    with pytest.raises(asyncio.CancelledError):
        await _abort(Disconnected(), MeshError(ErrorKind.DEADLINE, "too late"))  # type: ignore[arg-type]
