"""Calls inside a multiplexed stream behave as plain calls do, and do not disturb each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any, NamedTuple

import grpc.aio
import pytest

from mesh.context import RequestContext, current_request, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_channel, open_stream
from mesh.rpc.multiplex import caller, channel, service
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.multiplex.service import ServedCall
from mesh.rpc.multiplex.wire import (
    MAX_BATCH_BYTES,
    MAX_REQUEST_BYTES,
    MESSAGE_COST_BYTES,
    WINDOW_BYTES,
)
from mesh.rpc.server import Servicer
from mesh.v1 import inference_pb2, inference_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc
from tests.chaos.proxy import Proxy
from tests.helpers import Served, eventually, serve
from tests.mesh.rpc.test_server import SERVICE as TOKENIZER
from tests.mesh.rpc.test_server import FakeTokenizer

INFERENCE = "mesh.v1.InferenceService"
ENDLESS = 10**6
Request = inference_pb2.InferenceServiceGenerateRequest
Response = inference_pb2.InferenceServiceGenerateResponse


class CountingInference(inference_pb2_grpc.InferenceServiceServicer):
    """Sends as many messages as the first token id says, each with `ids_each` ids."""

    def __init__(self) -> None:
        self.ids_each = 1
        self.fail_after = ENDLESS
        self.message = "full: é"
        self.closing: Callable[[], Awaitable[None]] | None = None
        self.num_sent = 0
        self.num_running = 0
        self.multiplexed: list[bool] = []
        self.seen: list[RequestContext] = []

    async def Generate(self, request: Request, context: Any) -> AsyncIterator[Response]:
        self.multiplexed.append(isinstance(context, ServedCall))
        current = current_request()
        assert current is not None
        self.seen.append(current)
        self.num_running += 1
        try:
            for number in range(request.token_ids[0]):
                if number == self.fail_after:
                    raise MeshError(ErrorKind.OVERLOADED, self.message, retry_after=1.5)
                ids = [number % 128] * self.ids_each
                yield Response(chunk=inference_pb2.TokenChunk(token_ids=ids))
                self.num_sent += 1
        finally:
            self.num_running -= 1
            if self.closing is not None:
                await self.closing()


async def read_into(responses: AsyncIterator[Response], received: list[Response]) -> None:
    """Appends what arrives."""
    async for response in responses:
        received.append(response)


class Running(NamedTuple):
    """A server, its fakes, and a client whose multiplexed stream is open."""

    served: Served
    inference: CountingInference
    tokenizer: FakeTokenizer
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def read(self, num_messages: int) -> list[Response]:
        async with open_stream(self.stub.Generate, Request(token_ids=[num_messages])) as responses:
            return [response async for response in responses]


async def opened(channel: grpc.aio.Channel) -> None:
    """Waits for the stream, which the first call opens."""
    assert isinstance(channel, MultiplexChannel)
    await eventually(lambda: channel.stream() is not None, "the stream is open")


@pytest.fixture
async def running(no_tasks_left: None) -> AsyncIterator[Running]:
    inference, tokenizer = CountingInference(), FakeTokenizer()
    register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
    servicers = (
        Servicer(INFERENCE, inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference),
        Servicer(TOKENIZER, register, tokenizer),
    )
    async with serve(*servicers) as served:
        await opened(served.channel)
        yield Running(served, inference, tokenizer, served.channel)


async def test_messages_and_context_arrive_as_in_a_plain_call(running: Running) -> None:
    """All messages in order; request id and deadline are those of the caller."""
    deadline = asyncio.get_running_loop().time() + 30
    with use_request(RequestContext(request_id="r-1", deadline=deadline)):
        responses = await running.read(300)
    assert [list(each.chunk.token_ids) for each in responses] == [[n % 128] for n in range(300)]
    [seen] = running.inference.seen
    assert (seen.request_id, running.inference.multiplexed) == ("r-1", [True])
    assert seen.deadline == pytest.approx(deadline, abs=1)


async def test_an_error_arrives_as_it_was_raised(running: Running) -> None:
    """After the messages before it, with its kind, message and time to retry."""
    running.inference.fail_after = 2
    request, received = Request(token_ids=[5]), list[Response]()
    async with open_stream(running.stub.Generate, request) as responses:
        with pytest.raises(MeshError) as caught:
            await read_into(responses, received)
    error = caught.value
    assert len(received) == 2
    assert (error.kind, error.message, error.retry_after) == (ErrorKind.OVERLOADED, "full: é", 1.5)
    assert error.is_reported


async def test_a_unary_call_returns_its_response_or_raises(running: Running) -> None:
    """As in a plain call; the field's name is in the error."""
    stub = tokenizer_pb2_grpc.TokenizerServiceStub(running.channel)
    response = await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="a"))
    with pytest.raises(MeshError) as caught:
        await call_unary(stub.Encode, tokenizer_pb2.EncodeRequest(text="bad"))
    assert list(response.token_ids) == [1, 2, 3]
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, "text")


async def test_a_stalled_reader_holds_only_itself(running: Running) -> None:
    """Its handler waits within the window; others run on, and it continues when it is read."""
    async with open_stream(running.stub.Generate, Request(token_ids=[1000])) as stalled:
        await anext(stalled)
        await asyncio.gather(*(running.read(200) for _ in range(3)))
        sent = running.inference.num_sent - 3 * 200
        assert sent <= WINDOW_BYTES // MESSAGE_COST_BYTES + 1
        assert len([response async for response in stalled]) == 999


async def test_leaving_a_call_ends_its_handler(running: Running) -> None:
    """The handler's generator is closed, and the stream serves other calls."""
    async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])) as responses:
        await anext(responses)
        assert running.inference.num_running == 1
    await eventually(lambda: running.inference.num_running == 0, "the handler has ended")
    assert len(await running.read(3)) == 3


async def test_a_call_that_is_cancelled_at_once_leaves_nothing(running: Running) -> None:
    """Begin and cancellation arrive in one message, before the handler has run."""
    for _ in range(3):
        async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])):
            pass
    assert len(await running.read(3)) == 3
    assert running.served.server.interceptor.num_active == 0


async def test_a_passed_deadline_ends_the_call_at_both_ends(running: Running) -> None:
    """The caller gets DEADLINE, the handler is cancelled."""
    request = Request(token_ids=[ENDLESS])
    async with open_stream(running.stub.Generate, request, timeout=0.2) as responses:
        await asyncio.sleep(0.3)
        with pytest.raises(MeshError) as caught:
            await read_into(responses, [])
    assert caught.value.kind is ErrorKind.DEADLINE
    await eventually(lambda: running.inference.num_running == 0, "the handler has ended")


async def test_large_messages_are_sent_in_parts(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message over the window arrives whole; one over gRPC's limit fails its call only."""
    running.inference.ids_each = 5 * WINDOW_BYTES
    [response] = await running.read(1)
    assert len(response.chunk.token_ids) == 5 * WINDOW_BYTES
    running.inference.ids_each = 1
    async with open_stream(running.stub.Generate, Request(token_ids=[3])) as other:
        await anext(other)
        monkeypatch.setattr(service, "MAX_MESSAGE_BYTES", 1000)
        running.inference.ids_each = 1000
        with pytest.raises(MeshError):
            await running.read(1)
        assert len([response async for response in other]) == 2


async def test_a_large_request_is_a_plain_call(running: Running) -> None:
    """Large prompts do not delay the calls in the stream."""
    ids = [3, *range(300, 300 + MAX_REQUEST_BYTES)]
    async with open_stream(running.stub.Generate, Request(token_ids=ids)) as responses:
        assert len([response async for response in responses]) == 3
    assert running.inference.multiplexed == [False]


async def test_one_message_carries_what_many_calls_send(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 calls with three messages each need a few messages of the connection, not 192."""
    batches: list[int] = []
    receive = caller.CallerStream._receive

    def counting(self: caller.CallerStream, response: Any) -> None:
        batches.append(len(response.messages))
        receive(self, response)

    monkeypatch.setattr(caller.CallerStream, "_receive", counting)
    answers = await asyncio.gather(*(running.read(3) for _ in range(64)))
    assert [len(each) for each in answers] == [3] * 64
    assert sum(batches) == 192
    assert len(batches) <= 32


async def test_a_lost_connection_ends_its_calls_and_a_new_one_takes_others(
    running: Running,
) -> None:
    """They get UNAVAILABLE; later calls are plain until the next stream is open."""
    async with Proxy().running() as proxy, AsyncExitStack() as stack:
        proxy.target = running.served.address
        channel = open_channel(proxy.address)
        stack.push_async_callback(channel.close)
        await opened(channel)
        through = running._replace(channel=channel)
        request = Request(token_ids=[ENDLESS])
        async with open_stream(through.stub.Generate, request) as responses:
            await anext(responses)
            proxy.reset()
            with pytest.raises(MeshError) as caught:
                await read_into(responses, [])
        assert (caught.value.kind, caught.value.is_reported) == (ErrorKind.UNAVAILABLE, False)
        await eventually(lambda: running.inference.num_running == 0, "the handler has ended")
        await channel.channel_ready()
        assert len(await through.read(3)) == 3
        await opened(channel)
        assert len(await through.read(3)) == 3
    assert running.inference.multiplexed[0]
    assert running.inference.multiplexed[-1]


async def test_an_old_stream_is_replaced_without_a_loss(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call runs to the end there; new calls use the new stream, and the old one ends."""
    assert isinstance(running.channel, MultiplexChannel)
    old = running.channel.stream()
    assert old is not None
    running.channel._next_attempt = 0.0
    async with open_stream(running.stub.Generate, Request(token_ids=[500])) as responses:
        await anext(responses)
        with monkeypatch.context() as aged:
            aged.setattr(channel, "STREAM_SECONDS", -1.0)
            await eventually(lambda: running.channel.stream() is not old, "there is a new stream")
        assert len(await running.read(3)) == 3
        assert not old.lost
        assert len([response async for response in responses]) == 499
    await eventually(lambda: old.lost, "the old stream has ended")
    assert running.inference.multiplexed == [True, True]


async def test_a_call_after_a_long_pause_is_plain(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of an idle stream may be about to end; its calls would end with it."""
    assert isinstance(running.channel, MultiplexChannel)
    old = running.channel.stream()
    assert old is not None
    running.channel._next_attempt = 0.0
    old.opened -= 2 * channel.STREAM_SECONDS
    assert len(await running.read(3)) == 3
    assert running.inference.multiplexed == [False]
    await opened(running.channel)
    assert running.channel.stream() is not old
    assert len(await running.read(3)) == 3
    assert running.inference.multiplexed == [False, True]


async def test_a_drain_ends_calls_as_unavailable(running: Running) -> None:
    """The caller gets the drain's error, as of a plain call."""
    async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])) as responses:
        await anext(responses)
        draining = asyncio.create_task(running.served.server.drain(timeout=0.1))
        with pytest.raises(MeshError) as caught:
            await read_into(responses, [])
        assert await draining == 1
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.message == "server stopped"


async def test_without_the_service_calls_are_plain(no_tasks_left: None) -> None:
    """Such as with another server behind the address."""
    server, inference = grpc.aio.server(), CountingInference()
    bare = inference.Generate

    async def generate(request: Request, context: Any) -> AsyncIterator[Response]:
        with use_request(RequestContext(request_id="r")):
            async with aclosing(bare(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response

    inference.Generate = generate  # type: ignore[method-assign]
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    plain = open_channel(f"127.0.0.1:{port}")
    stub: Any = inference_pb2_grpc.InferenceServiceStub(plain)
    try:
        for _ in range(3):
            async with open_stream(stub.Generate, Request(token_ids=[3])) as responses:
                assert len([response async for response in responses]) == 3
    finally:
        await plain.close()
        await server.stop(None)
    assert inference.multiplexed == [False] * 3


async def test_an_end_that_is_no_unicode_ends_its_call(running: Running) -> None:
    """A lone surrogate in the message is replaced; the caller does not wait for ever."""
    running.inference.fail_after, running.inference.message = 0, "full: \ud800"
    async with asyncio.timeout(10):
        with pytest.raises(MeshError) as caught:
            await running.read(1)
    assert (caught.value.kind, caught.value.message) == (ErrorKind.OVERLOADED, "full: ?")


async def test_metadata_that_cannot_be_sent_leaves_no_call(running: Running) -> None:
    """The caller gets the error, and the stream has neither the call nor a part of it."""
    assert isinstance(running.channel, MultiplexChannel)
    stream = running.channel.stream()
    assert stream is not None
    with pytest.raises(UnicodeEncodeError):
        running.stub.Generate(Request(token_ids=[1]), metadata=(("key", "\ud800"),))
    assert not stream._calls
    assert len(await running.read(3)) == 3


async def test_waiting_calls_are_counted_with_their_metadata(running: Running) -> None:
    """Calls of a stalled connection do not become a message that is larger than gRPC allows."""
    assert isinstance(running.channel, MultiplexChannel)
    calls: list[Any] = []
    metadata = (("key", "a" * 8000),)
    while running.channel.stream() is not None and len(calls) < 100:
        calls.append(running.stub.Generate(Request(token_ids=[1]), metadata=metadata))
    assert 1 < len(calls) <= MAX_BATCH_BYTES // 8000 + 1
    assert running.inference.multiplexed == []
    assert [await each.code() for each in calls] == [grpc.StatusCode.OK] * len(calls)
    assert running.channel.stream() is not None


async def test_a_handler_is_cancelled_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does after a deadline is not interrupted by the caller's cancellation."""
    cleaning, cleaned = asyncio.Event(), asyncio.Event()

    async def closing() -> None:
        cleaning.set()
        await asyncio.sleep(0.1)
        cleaned.set()

    running.inference.closing = closing
    expired: list[ServedCall] = []
    expire = ServedCall._expire

    def remembering(self: ServedCall) -> None:
        expired.append(self)
        expire(self)

    monkeypatch.setattr(ServedCall, "_expire", remembering)
    request = Request(token_ids=[ENDLESS])
    async with open_stream(running.stub.Generate, request, timeout=0.1) as responses:
        with pytest.raises(MeshError):
            await read_into(responses, [])
        await asyncio.wait_for(cleaning.wait(), 10)
        for call in expired:
            call.cancel()
    await asyncio.wait_for(cleaned.wait(), 10)
    assert len(await running.read(3)) == 3
