"""Client side: deadlines and metadata, with a server that records what arrives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, TypeAlias, cast

import grpc.aio
import pytest

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.rpc.first_message import read_first
from mesh.rpc.server import Servicer
from mesh.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tests.helpers import eventually, serve
from tests.mesh.rpc.test_server import SERVICE, FakeTokenizer
from tests.samples import Change, value

Stub: TypeAlias = "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"
ENCODE = tokenizer_pb2.EncodeRequest(text="a")


@pytest.fixture
async def tokenizer() -> FakeTokenizer:
    return FakeTokenizer()


@pytest.fixture
async def stub(tokenizer: FakeTokenizer, no_tasks_left: None) -> AsyncIterator[Stub]:
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    async with serve(Servicer(SERVICE, register, tokenizer)) as served:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(served.channel)


@pytest.mark.parametrize(
    ("remaining", "timeout", "expected"),
    [(None, None, None), (5, None, 5), (None, 3, 3), (5, 3, 3), (3, 5, 3)],
)
async def test_the_earlier_deadline_applies(
    tokenizer: FakeTokenizer,
    stub: Stub,
    remaining: float | None,
    timeout: float | None,
    expected: float | None,
) -> None:
    """A timeout can shorten the request's deadline but not extend it."""
    deadline = None if remaining is None else time.monotonic() + remaining
    with use_request(RequestContext(request_id="r", deadline=deadline)):
        await call_unary(stub.Encode, ENCODE, timeout)
    [seen] = tokenizer.seen
    assert seen.remaining() == (None if expected is None else pytest.approx(expected, abs=0.5))


async def test_a_passed_deadline_fails_without_waiting(stub: Stub) -> None:
    """The call ends at once with DEADLINE."""
    with (
        use_request(RequestContext(request_id="r", deadline=time.monotonic() - 1)),
        pytest.raises(MeshError) as caught,
    ):
        await call_unary(stub.Decode, tokenizer_pb2.DecodeRequest())
    assert caught.value.kind is ErrorKind.DEADLINE


async def test_outside_of_a_request_the_server_creates_an_id(
    tokenizer: FakeTokenizer, stub: Stub
) -> None:
    """Every request has an id at the server."""
    await call_unary(stub.Encode, ENCODE)
    [seen] = tokenizer.seen
    assert len(seen.request_id) == 32


async def test_a_closed_port_is_unavailable() -> None:
    """Unary calls and streams raise the same error."""
    channel = open_channel("127.0.0.1:1")
    stub: Stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)  # type: ignore[assignment]
    with pytest.raises(MeshError) as unary:
        await call_unary(stub.Encode, ENCODE, timeout=5)
    with pytest.raises(MeshError) as stream:
        async with open_stream(stub.GetTokenizer, tokenizer_pb2.GetTokenizerRequest()) as responses:
            await anext(responses)
    await channel.close()
    assert unary.value.kind is stream.value.kind is ErrorKind.UNAVAILABLE


async def test_cancelling_the_caller_cancels_the_call(tokenizer: FakeTokenizer, stub: Stub) -> None:
    """Cancelling a task that reads also cancels the handler."""
    started = asyncio.Event()

    async def read() -> None:
        request = tokenizer_pb2.GetTokenizerRequest(known_sha256="slow")
        async with open_stream(stub.GetTokenizer, request) as responses:
            async for _ in responses:
                started.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(started.wait(), 5)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await asyncio.wait_for(tokenizer.closed.wait(), 5)


async def test_the_first_message_is_requested_with_the_metadata(stub: Stub) -> None:
    """Not after them: `call.read` is not called."""
    request = tokenizer_pb2.GetTokenizerRequest()
    call = stub.GetTokenizer(request)
    call.read = lambda: pytest.fail("call.read was called")  # type: ignore[method-assign]
    first = await read_first(call)
    assert isinstance(first, tokenizer_pb2.GetTokenizerResponse)
    call.cancel()


async def test_a_call_without_the_private_fields_is_read_with_read(stub: Stub) -> None:
    """Such as a call that an interceptor returns."""

    class Wrapped:
        def __init__(self) -> None:
            self.read = stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest()).read

    call = cast("grpc.aio.UnaryStreamCall[Any, tokenizer_pb2.GetTokenizerResponse]", Wrapped())
    assert isinstance(await read_first(call), tokenizer_pb2.GetTokenizerResponse)


async def test_a_stream_without_a_message_ends(tokenizer: FakeTokenizer, stub: Stub) -> None:
    """It ends or raises, as a stream with messages does."""
    request = tokenizer_pb2.GetTokenizerRequest(known_sha256="nothing")
    async with open_stream(stub.GetTokenizer, request) as responses:
        assert [response async for response in responses] == []


async def test_calls_are_observed_by_method(stub: Stub) -> None:
    """Unary calls and streams are counted at both ends; none stays active."""
    change = Change()
    await call_unary(stub.Encode, ENCODE)
    async with open_stream(stub.GetTokenizer, tokenizer_pb2.GetTokenizerRequest()) as responses:
        await anext(responses)  # the stream never ends
    for method in ("Encode", "GetTokenizer"):
        labels = {"rpc_service": SERVICE, "rpc_method": method, "code": "OK"}
        assert change.of("mesh_rpc_client_duration_seconds_count", **labels) == 1
    await eventually(lambda: value("mesh_rpc_server_active", rpc_service=SERVICE) == 0, "idle")
