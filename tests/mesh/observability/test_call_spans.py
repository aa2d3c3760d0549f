"""Client and server spans of real calls, for each outcome.

The last tests show the defects for which the library's own interceptors are not used
(docs/decisions/0029). If one of them fails, the library has been fixed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from mesh.errors import MeshError
from mesh.observability import tracing
from mesh.observability.recording.current import CurrentSpan
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import eventually, serve
from tests.mesh.rpc.test_server import SERVICE, FakeTokenizer

Stub: TypeAlias = "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"


class FiniteTokenizer(FakeTokenizer):
    """A fake whose stream ends."""

    async def GetTokenizer(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        if request.known_sha256 != "short":
            async with aclosing(super().GetTokenizer(request, context)) as responses:
                async for response in responses:
                    yield response
        for _ in range(3):
            yield tokenizer_pb2.GetTokenizerResponse(data=b"x")


@pytest.fixture
async def tokenizer() -> FiniteTokenizer:
    return FiniteTokenizer()


@pytest.fixture
async def stub(
    no_tasks_left: None, spans: InMemorySpanExporter, tokenizer: FiniteTokenizer
) -> AsyncIterator[Stub]:
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, tokenizer)) as served:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)


async def pair(spans: InMemorySpanExporter) -> tuple[ReadableSpan, ReadableSpan]:
    """The client's and the server's span of the only call."""
    await eventually(lambda: len(spans.get_finished_spans()) == 2, "both spans have ended")
    by_kind = {span.kind: span for span in spans.get_finished_spans()}
    client, server = by_kind[SpanKind.CLIENT], by_kind[SpanKind.SERVER]
    assert server.parent is not None
    assert client.context is not None
    assert server.parent.span_id == client.context.span_id
    assert client.name == server.name
    return client, server


def code_of(span: ReadableSpan) -> object:
    return (span.attributes or {})["rpc.response.status_code"]


UNARY = [
    ("good", "OK", StatusCode.UNSET),
    ("bad", "INVALID_ARGUMENT", StatusCode.UNSET),
    ("full", "RESOURCE_EXHAUSTED", StatusCode.UNSET),
    ("bug", "INTERNAL", StatusCode.ERROR),
]


@pytest.mark.parametrize(("text", "code", "status"), UNARY)
async def test_a_unary_call(
    stub: Stub,
    spans: InMemorySpanExporter,
    text: str,
    code: str,
    status: StatusCode,
) -> None:
    """Both spans have the status code; both are errors if the server failed."""
    call = call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text=text))
    [result] = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(result, MeshError) == (text != "good")
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == (code, code)
    assert client.status.status_code is server.status.status_code is status
    assert (client.attributes or {})["server.address"] == "127.0.0.1"


async def test_a_unary_call_whose_caller_is_cancelled(
    stub: Stub, spans: InMemorySpanExporter, tokenizer: FiniteTokenizer
) -> None:
    """Its client span ends; the library's interceptor would not end it."""
    calling = asyncio.create_task(call_unary(stub.Decode, tokenizer_pb2.DecodeRequest()))
    await tokenizer.decoding.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("CANCELLED", "CANCELLED")
    assert client.status.status_code is server.status.status_code is StatusCode.UNSET


async def test_a_unary_call_past_its_deadline(stub: Stub, spans: InMemorySpanExporter) -> None:
    """Both spans have DEADLINE_EXCEEDED, and both are errors."""
    with pytest.raises(MeshError):
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest(), timeout=0.5)
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert client.status.status_code is server.status.status_code is StatusCode.ERROR


async def test_a_stream_read_to_its_end(stub: Stub, spans: InMemorySpanExporter) -> None:
    """Both spans are OK, and the server's lies inside the client's."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="short")
    async with open_stream(stub.GetTokenizer, request) as responses:
        assert len([response async for response in responses]) == 3
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("OK", "OK")
    assert_inside(server, client)


async def test_a_stream_left_at_its_last_message(stub: Stub, spans: InMemorySpanExporter) -> None:
    """A reader that calls `has_last` waits for the status, so nothing is cancelled."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="short")
    async with open_stream(stub.GetTokenizer, request) as responses:
        for _ in range(3):
            await anext(responses)
        responses.has_last()
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("OK", "OK")
    assert_inside(server, client)


async def test_a_stream_left_in_the_middle(stub: Stub, spans: InMemorySpanExporter) -> None:
    """Both spans are cancelled; neither is an error."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("CANCELLED", "CANCELLED")
    assert client.status.status_code is server.status.status_code is StatusCode.UNSET


async def test_a_stream_that_fails(stub: Stub, spans: InMemorySpanExporter) -> None:
    """A failure after some messages is an error in both spans, with the message."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="fail")
    async with open_stream(stub.GetTokenizer, request) as responses:
        with pytest.raises(MeshError):
            _ = [response async for response in responses]
    client, server = await pair(spans)
    assert (code_of(client), code_of(server)) == ("UNAVAILABLE", "UNAVAILABLE")
    assert client.status.status_code is server.status.status_code is StatusCode.ERROR
    assert client.status.description == server.status.description == "went away"


def assert_inside(child: ReadableSpan, parent: ReadableSpan) -> None:
    assert parent.start_time is not None
    assert parent.end_time is not None
    assert child.start_time is not None
    assert child.end_time is not None
    assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time


class Library:
    """The same service with OpenTelemetry's own interceptors at both ends."""

    def __init__(self) -> None:
        self.tokenizer = FiniteTokenizer()
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def ended(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]


@pytest.fixture
async def library() -> AsyncIterator[tuple[Library, Stub]]:
    library = Library()
    interceptor = aio_server_interceptor(library.provider)  # type: ignore[no-untyped-call]
    server = grpc.aio.server(interceptors=[interceptor])
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(library.tokenizer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    interceptors = aio_client_interceptors(library.provider)  # type: ignore[no-untyped-call]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", interceptors=interceptors)
    yield library, tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    await channel.close()
    await server.stop(None)


async def test_the_librarys_server_span_of_a_cancelled_stream_is_ok(
    library: tuple[Library, Stub],
) -> None:
    """It presets the status and does not record the cancellation."""
    spans, stub = library
    call = stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest(known_sha256="slow"))
    async for _ in call:
        break
    call.cancel()
    await eventually(lambda: bool(spans.ended(SpanKind.SERVER)), "the server's span has ended")
    [server] = spans.ended(SpanKind.SERVER)
    assert (server.attributes or {})["rpc.grpc.status_code"] == 0


async def test_the_librarys_client_does_not_end_a_cancelled_call(
    library: tuple[Library, Stub],
) -> None:
    """A cancelled unary call leaves its span open and continues at the server."""
    spans, stub = library
    calling = asyncio.ensure_future(stub.Decode(tokenizer_pb2.DecodeRequest()))
    await spans.tokenizer.decoding.wait()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    await asyncio.sleep(0.3)
    assert spans.ended(SpanKind.CLIENT) == []
    assert spans.ended(SpanKind.SERVER) == []


async def test_an_unrecorded_span_has_no_children(stub: Stub, spans: InMemorySpanExporter) -> None:
    """The trace id is propagated, with the flag that it is not sampled."""
    above = NonRecordingSpan(SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(0)))
    with CurrentSpan(above):
        with tracing.stage("work"), tracing.detached_stage("more"):
            await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="good"))
        request = tokenizer_pb2.GetTokenizerRequest(known_sha256="short")
        async with open_stream(stub.GetTokenizer, request) as responses:
            assert [response async for response in responses]
    # The servers have spans because the tests' sampler records everything.
    await eventually(lambda: len(spans.get_finished_spans()) == 2, "both calls have ended")
    for span in spans.get_finished_spans():
        assert span.kind is SpanKind.SERVER
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == (0xA, 0xB)
        assert not span.parent.trace_flags.sampled
