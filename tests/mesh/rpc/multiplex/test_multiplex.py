"""Calls inside a multiplexed stream behave as plain calls do, and do not disturb each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

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
from tests.helpers import eventually, serve
from tests.mesh.rpc.multiplex.counting import (
    ENDLESS,
    INFERENCE,
    CountingInference,
    Request,
    Response,
    Running,
    opened,
    read_into,
)


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


async def test_responses_pass_a_reader_that_waits(running: Running) -> None:
    """Each response is taken or read, in order, over many windows; in the caller's context."""
    got: list[Response] = []
    request_ids = set()

    def take(responses: list[Response], _: object) -> list[Response]:
        current = current_request()
        request_ids.add(current and current.request_id)
        got.extend(responses)
        return []

    with use_request(RequestContext(request_id="r-2")):
        request = Request(token_ids=[1000])
        async with open_stream(running.stub.Generate, request) as responses:
            got.append(await anext(responses))
            responses.pass_on(take)
            await read_into(responses, got)
    assert [list(each.chunk.token_ids) for each in got] == [[n % 128] for n in range(1000)]
    assert request_ids == {"r-2"}


async def test_a_reader_gets_what_is_not_taken(running: Running) -> None:
    """In place of the response, and once; after a failure the call ends at both ends."""
    other = Response(chunk=inference_pb2.TokenChunk(token_ids=[999]))
    taken: list[Response] = []
    read: list[Response] = []

    def take(responses: list[Response], _: object) -> list[Response]:
        taken.extend(responses)
        return [other] if len(taken) % 2 else []

    async with open_stream(running.stub.Generate, Request(token_ids=[200])) as responses:
        await anext(responses)
        responses.pass_on(take)
        await read_into(responses, read)
    replaced = [each for each in read if each == other]
    assert taken
    assert len(replaced) == (len(taken) + 1) // 2
    assert len(taken) + len(read) - len(replaced) == 199

    def fail(responses: list[Response], _: object) -> list[Response]:
        raise ValueError(responses[0])

    async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])) as responses:
        await anext(responses)
        responses.pass_on(fail)
        with pytest.raises(ValueError, match="chunk"):
            await read_into(responses, [])
    await eventually(lambda: running.inference.num_running == 0, "the handler has ended")


async def test_responses_wait_until_they_are_taken(running: Running) -> None:
    """Together and in order; if they never are, the reader gets them when the call ends."""
    read: list[Response] = []
    retries: list[Callable[[], None]] = []
    taken: list[list[Response]] = []

    def take(responses: list[Response], retry: Callable[[], None]) -> list[Response] | None:
        if not retries:
            retries.append(retry)
            return None
        taken.append(responses)
        return []

    async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])) as responses:
        await anext(responses)
        responses.pass_on(take)
        reading = asyncio.create_task(read_into(responses, read))
        await eventually(lambda: bool(retries), "responses wait")
        call: Any = responses._call
        await eventually(lambda: len(call._messages) > 1, "more has arrived")
        retries[0]()
        await eventually(lambda: len(taken) > 1, "further responses are taken")
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    ids = [each.chunk.token_ids[0] for responses in taken for each in responses]
    assert len(taken[0]) > 1
    assert ids[:128] == [(len(read) + 1 + number) % 128 for number in range(len(ids))][:128]

    taken.clear()
    retries.clear()
    read.clear()
    async with open_stream(running.stub.Generate, Request(token_ids=[50])) as responses:
        await anext(responses)
        responses.pass_on(take)
        await read_into(responses, read)
    assert len(read) == 49


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


@pytest.mark.parametrize("passes", [False, True])
async def test_the_parts_of_large_messages_are_credited_once(
    running: Running, passes: bool
) -> None:
    """Once all messages are read or taken, the server may send one window, as at the beginning."""
    running.inference.ids_each = 5 * WINDOW_BYTES
    async with open_stream(running.stub.Generate, Request(token_ids=[20])) as responses:
        call: Any = responses._call
        await anext(responses)
        if passes:
            responses.pass_on(lambda taken, _: [])
        await read_into(responses, [])
        assert call._credit + call._read_bytes == WINDOW_BYTES


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


@asynccontextmanager
async def older(inference: CountingInference, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """A server without multiplexed streams, such as that of another project; yields its address."""
    bare = inference.Generate

    async def generate(request: Request, context: Any) -> AsyncIterator[Response]:
        with use_request(RequestContext(request_id="r")):
            async with aclosing(bare(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response

    inference.Generate = generate  # type: ignore[method-assign]
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_without_the_service_calls_are_plain(no_tasks_left: None) -> None:
    """Such as with another server behind the address."""
    inference = CountingInference()
    async with older(inference) as address:
        plain = open_channel(address)
        stub: Any = inference_pb2_grpc.InferenceServiceStub(plain)
        for _ in range(3):
            async with open_stream(stub.Generate, Request(token_ids=[3])) as responses:
                assert len([response async for response in responses]) == 3
        await plain.close()
    assert inference.multiplexed == [False] * 3


async def test_an_older_caller_makes_plain_calls(running: Running) -> None:
    """A server of the new version answers it as before."""
    async with grpc.aio.insecure_channel(running.served.address) as old:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(old)
        answers = [response async for response in stub.Generate(Request(token_ids=[3]))]
    assert len(answers) == 3
    assert running.inference.multiplexed == [False]


async def test_a_server_is_upgraded_and_downgraded_behind_one_address(
    no_tasks_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is opened once the new version is there, and calls are plain when it has gone."""
    monkeypatch.setattr(channel, "UNIMPLEMENTED_SECONDS", 0.05)
    monkeypatch.setattr(channel, "RETRY_SECONDS", 0.05)
    servers = [CountingInference() for _ in range(3)]
    register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    async with AsyncExitStack() as stack:
        async with older(servers[0]) as address:
            caller = open_channel(address)
            stack.push_async_callback(caller.close)
            assert isinstance(caller, MultiplexChannel)
            await counted(caller, 3)
        async with serve(Servicer(INFERENCE, register, servers[1]), listen=address):
            await caller.channel_ready()
            await counted(caller, 3)
            await opened(caller)
            await counted(caller, 3)
        async with older(servers[2], address):
            await caller.channel_ready()
            await counted(caller, 3)
    multiplexed = [each.multiplexed for each in servers]
    assert multiplexed[0] == multiplexed[2] == [False]
    assert multiplexed[1][-1]


async def counted(caller: grpc.aio.Channel, number: int) -> None:
    """Make a call, again while the server is being replaced."""
    stub: Any = inference_pb2_grpc.InferenceServiceStub(caller)
    async with asyncio.timeout(20):
        while True:
            received = list[Response]()
            try:
                async with open_stream(stub.Generate, Request(token_ids=[number])) as responses:
                    await read_into(responses, received)
            except MeshError as error:
                if error.kind is not ErrorKind.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.02)
                continue
            assert len(received) == number
            return


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
