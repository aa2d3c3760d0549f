"""Server and channel together: errors, cancellation, health, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace

from mesh.context import RequestContext, current_request, use_request
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError, invalid
from mesh.observability.recording.current import current_span
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.server import Servicer
from mesh.rpc.transport import STREAM_WINDOW_BYTES
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import eventually, serve

SERVICE = "mesh.v1.TokenizerService"


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Behaves as the request's `text` names, to exercise what handlers can do."""

    def __init__(self) -> None:
        self.seen: list[RequestContext] = []
        self.trace_ids: list[int] = []
        self.closed = asyncio.Event()
        self.decoding = asyncio.Event()
        self.num_sent = 0

    async def Encode(self, request, context):  # type: ignore[no-untyped-def]
        request_context = current_request()
        assert request_context is not None
        self.seen.append(request_context)
        self.trace_ids.append(current_span().get_span_context().trace_id)
        if request.text == "bad":
            raise invalid("text", "text must not be bad, given 'bad'")
        if request.text == "full":
            raise MeshError(ErrorKind.OVERLOADED, "try later", retry_after=1.5)
        if request.text == "bug":
            raise RuntimeError("a secret detail")
        return tokenizer_pb2.EncodeResponse(token_ids=[1, 2, 3])

    async def Decode(self, request, context):  # type: ignore[no-untyped-def]
        self.decoding.set()
        await asyncio.sleep(60)

    async def GetTokenizer(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def]
        try:
            while request.known_sha256 != "nothing":
                yield tokenizer_pb2.GetTokenizerResponse(data=b"x" * 1000)
                self.num_sent += 1
                if request.known_sha256 == "slow":
                    await asyncio.sleep(60)
                if request.known_sha256 == "fail" and self.num_sent == 3:
                    raise MeshError(ErrorKind.UNAVAILABLE, "went away")
        finally:
            self.closed.set()


@pytest.fixture
async def tokenizer() -> FakeTokenizer:
    return FakeTokenizer()


@pytest.fixture
async def served(tokenizer, no_tasks_left):  # type: ignore[no-untyped-def]
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, tokenizer)) as served:
        yield served


@pytest.fixture
def stub(served) -> tokenizer_pb2_grpc.TokenizerServiceAsyncStub:  # type: ignore[no-untyped-def]
    return tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)


async def test_request_id_deadline_and_trace_reach_the_server(tokenizer, stub) -> None:  # type: ignore[no-untyped-def]
    """The request context is sent with the call."""
    request = RequestContext(request_id="r-1", deadline=asyncio.get_running_loop().time() + 5)
    with use_request(request), trace.get_tracer("t").start_as_current_span("root") as root:
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="a"))
    [seen] = tokenizer.seen
    remaining = seen.remaining()
    assert seen.request_id == "r-1"
    assert remaining is not None
    assert 3 < remaining <= 5.1  # gRPC rounds the timeout up
    assert tokenizer.trace_ids == [root.get_span_context().trace_id]


async def test_an_error_arrives_as_it_was_raised(stub) -> None:  # type: ignore[no-untyped-def]
    """Kind, message, field and retry delay are preserved."""
    with pytest.raises(MeshError) as bad:
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="bad"))
    with pytest.raises(MeshError) as full:
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="full"))
    assert bad.value.kind is ErrorKind.INVALID_REQUEST
    assert bad.value.param == "text"
    assert bad.value.message == "text must not be bad, given 'bad'"
    assert full.value.kind is ErrorKind.OVERLOADED
    assert full.value.retry_after == 1.5


async def test_a_bug_is_reported_without_its_details(stub) -> None:  # type: ignore[no-untyped-def]
    """An unmapped exception becomes INTERNAL with a generic message."""
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="bug"))
    assert caught.value.kind is ErrorKind.INTERNAL
    assert caught.value.message == INTERNAL_MESSAGE


async def test_leaving_a_stream_cancels_the_handler_at_once(tokenizer, stub) -> None:  # type: ignore[no-untyped-def]
    """A caller that leaves a stream early cancels the handler, also while it waits."""
    for mode in ("", "slow"):
        tokenizer.closed.clear()
        request = tokenizer_pb2.GetTokenizerRequest(known_sha256=mode)
        async with open_stream(stub.GetTokenizer, request) as responses:
            await anext(responses)
        await asyncio.wait_for(tokenizer.closed.wait(), 5)


async def test_a_stalled_reader_stops_the_writer(tokenizer, stub) -> None:  # type: ignore[no-untyped-def]
    """Flow control is the backpressure: the handler blocks instead of buffering."""
    request = tokenizer_pb2.GetTokenizerRequest()
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
        stalled = -1
        while stalled != tokenizer.num_sent:
            stalled = tokenizer.num_sent
            await asyncio.sleep(0.3)
        assert stalled * 1000 <= 4 * STREAM_WINDOW_BYTES


async def test_an_error_in_mid_stream_comes_after_what_was_sent(tokenizer, stub) -> None:  # type: ignore[no-untyped-def]
    """Messages before the failure are delivered, then the error."""
    received = 0
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="fail")
    async with open_stream(stub.GetTokenizer, request) as responses:
        for _ in range(3):
            await anext(responses)
            received += 1
        with pytest.raises(MeshError, match="went away"):
            await anext(responses)
    assert received == 3


async def test_a_deadline_ends_the_call(stub) -> None:  # type: ignore[no-untyped-def]
    """A call that takes too long raises DEADLINE at the caller."""
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest(), timeout=0.1)
    assert caught.value.kind is ErrorKind.DEADLINE


async def test_health_of_process_and_service_are_separate(served) -> None:  # type: ignore[no-untyped-def]
    """While a service is not ready, the process is SERVING."""
    health = health_pb2_grpc.HealthStub(served.channel)
    await served.server.set_ready(False)
    process = await health.Check(health_pb2.HealthCheckRequest(service=""))
    service = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert process.status == health_pb2.HealthCheckResponse.SERVING
    assert service.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_drain_refuses_new_calls_and_aborts_the_rest(served, stub, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """New calls get UNAVAILABLE at once, running calls when the timeout passes."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
        draining = asyncio.create_task(served.server.drain(timeout=0.5))
        await eventually(lambda: served.server.interceptor.draining, "draining")
        with pytest.raises(MeshError) as refused:
            await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="a"))
        with pytest.raises(MeshError) as cut:
            await anext(responses)
    assert refused.value.kind is ErrorKind.UNAVAILABLE
    assert refused.value.message == "this server is draining"
    assert cut.value.kind is ErrorKind.UNAVAILABLE
    assert await draining == 1
    assert tokenizer.closed.is_set()


async def test_drain_waits_for_running_calls(served, stub) -> None:  # type: ignore[no-untyped-def]
    """A stream that ends in time ends normally."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
    async with open_stream(stub.GetTokenizer, request) as responses:
        await anext(responses)
        draining = asyncio.create_task(served.server.drain(timeout=5))
        await eventually(lambda: served.server.interceptor.draining, "draining")
    assert await asyncio.wait_for(draining, 4) == 0
