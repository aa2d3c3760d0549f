"""A peer that breaks the rules of a multiplexed stream: every call ends once, others run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_channel, open_stream
from mesh.rpc.multiplex import caller
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.multiplex.wire import (
    FIRST_PATHS,
    MAX_PART_BYTES,
    MULTIPLEXED_PATHS,
    PATH,
    WINDOW_BYTES,
)
from mesh.rpc.transport import channel_options
from mesh.v1 import inference_pb2_grpc, multiplex_pb2, multiplex_pb2_grpc
from tests.helpers import eventually
from tests.mesh.rpc.multiplex.counting import ENDLESS, Request, Response, Running, opened

GENERATE = "/mesh.v1.InferenceService/Generate"
MAX_UINT32 = 2**32 - 1

Ends = dict[int, list[int]]


def begin(call_id: int, num_messages: int = 3, **fields: Any) -> multiplex_pb2.CallBegin:
    """The begin of a call that counts."""
    request = Request(token_ids=[num_messages]).SerializeToString()
    return multiplex_pb2.CallBegin(
        **{"call_id": call_id, "path": GENERATE, "request": request, **fields}
    )


class RawStream:
    """A stream whose caller sends what it likes."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.paths: Sequence[str] = ()
        self.num_messages: dict[int, int] = {}
        self.ends: Ends = {}

    async def send(self, **fields: Any) -> None:
        await self.call.write(multiplex_pb2.MultiplexRequest(**fields))

    async def read(self) -> bool:
        """Take the next response; False at the end."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            return False
        self.paths = [*self.paths, *response.paths]
        for message in response.messages:
            self.num_messages[message.call_id] = self.num_messages.get(message.call_id, 0) + 1
        for end in response.ends:
            self.ends.setdefault(end.call_id, []).append(end.code)
        return True

    async def read_until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                assert await self.read(), "the stream has ended"


@pytest.fixture
async def raw(running: Running) -> AsyncIterator[RawStream]:
    address, options = running.served.address, channel_options()
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        method: Any = channel.stream_stream(
            PATH,
            multiplex_pb2.MultiplexRequest.SerializeToString,
            multiplex_pb2.MultiplexResponse.FromString,
        )
        stream = RawStream(method())
        assert await stream.read()
        yield stream
        stream.call.cancel()


async def test_a_server_names_the_calls_of_its_streams(running: Running, raw: RawStream) -> None:
    """Those that it serves, so that a newer caller makes others as plain calls."""
    assert set(raw.paths) == {GENERATE, "/mesh.v1.TokenizerService/Encode"}


async def test_an_id_that_is_used_twice_ends_its_stream_only(
    running: Running, raw: RawStream, caplog: pytest.LogCaptureFixture
) -> None:
    """All handlers of the stream end; other streams go on, and there is no traceback."""
    await raw.send(begins=[begin(1, ENDLESS)])
    await raw.read_until(lambda: 1 in raw.num_messages)
    async with open_stream(running.stub.Generate, Request(token_ids=[ENDLESS])) as other:
        await anext(other)
        await raw.send(begins=[begin(1)])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.read_until(lambda: False)
        await eventually(lambda: running.inference.num_running == 1, "its handler has ended")
        await anext(other)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "call_id 1" in (caught.value.details() or "")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param(
            {"timeout": float("nan"), "num_messages": ENDLESS},
            grpc.StatusCode.DEADLINE_EXCEEDED,
            id="nan",
        ),
        pytest.param(
            {"timeout": -1.0, "num_messages": ENDLESS},
            grpc.StatusCode.DEADLINE_EXCEEDED,
            id="negative",
        ),
        pytest.param({"timeout": float("inf")}, grpc.StatusCode.OK, id="infinite"),
        pytest.param({"timeout": 1e300}, grpc.StatusCode.OK, id="huge"),
        pytest.param({"path": "/x/Y"}, grpc.StatusCode.UNIMPLEMENTED, id="unknown path"),
        pytest.param({"path": ""}, grpc.StatusCode.UNIMPLEMENTED, id="no path"),
        pytest.param({"request": b"\xff\xff"}, grpc.StatusCode.INTERNAL, id="garbage"),
        pytest.param(
            {"metadata": [multiplex_pb2.Metadatum(key="x-request-id", value=b"\xff")]},
            grpc.StatusCode.OK,
            id="metadata that is no text",
        ),
    ],
)
async def test_a_bad_call_ends_once_and_alone(
    running: Running,
    raw: RawStream,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    code: grpc.StatusCode,
) -> None:
    """A call beside it in the same stream has all its messages; no traceback is logged."""
    await raw.send(begins=[begin(7), begin(8, **fields), begin(9)])
    await raw.read_until(lambda: len(raw.ends) == 3)
    assert raw.ends == {7: [0], 8: [code.value[0]], 9: [0]}
    assert raw.num_messages[7] == raw.num_messages[9] == 3
    assert running.served.server.interceptor.num_active == 0
    assert "Traceback" not in caplog.text


async def test_credits_and_cancellations_of_other_calls_are_ignored(
    running: Running, raw: RawStream
) -> None:
    """Of unknown and of ended calls, twice, and larger than anything that is sent."""
    await raw.send(begins=[begin(1)])
    await raw.read_until(lambda: 1 in raw.ends)
    credits = [
        multiplex_pb2.CallCredit(call_id=id, num_bytes=MAX_UINT32) for id in (0, 1, 2, 2, 99)
    ]
    await raw.send(begins=[begin(2, 300)], credits=credits, cancelled=[0, 1, 1, 99])
    await raw.read_until(lambda: 2 in raw.ends)
    assert raw.num_messages == {1: 3, 2: 300}
    assert raw.ends == {1: [0], 2: [0]}


async def test_a_reader_that_grants_everything_and_reads_nothing_is_bounded(
    running: Running, raw: RawStream
) -> None:
    """The transport's window and one batch hold its calls; other connections run on."""
    running.inference.ids_each = MAX_PART_BYTES // 2
    credits = [multiplex_pb2.CallCredit(call_id=1, num_bytes=MAX_UINT32) for _ in range(100)]
    await raw.send(begins=[begin(1, ENDLESS)], credits=credits)
    await eventually(lambda: running.inference.num_sent > 0, "it sends")
    before = -1
    while before != running.inference.num_sent:
        before = running.inference.num_sent
        await asyncio.sleep(0.1)
    assert before * running.inference.ids_each < 4 * 1024 * 1024
    running.inference.ids_each = 1
    assert len(await running.read(200)) == 200
    raw.call.cancel()
    await eventually(lambda: running.inference.num_running == 0, "the handler has ended")


class RawServer(
    multiplex_pb2_grpc.MultiplexServiceServicer, inference_pb2_grpc.InferenceServiceServicer
):
    """A server that sends what it likes for each call, and remembers what it got."""

    def __init__(self) -> None:
        self.accepted = multiplex_pb2.MultiplexResponse()
        self.responses: Callable[[int], list[multiplex_pb2.MultiplexResponse]] = lambda _: []
        self.cancelled: list[int] = []
        self.num_plain = 0

    async def Multiplex(self, requests: Any, context: Any) -> None:
        await context.write(self.accepted)
        async for request in requests:
            self.cancelled += request.cancelled
            for each in request.begins:
                for response in self.responses(each.call_id):
                    await context.write(response)

    async def Generate(self, request: Request, context: Any) -> AsyncIterator[Response]:
        self.num_plain += 1
        yield Response()


def message(call_id: int, number: int = 1, **fields: Any) -> multiplex_pb2.CallMessage:
    response = Response()
    response.chunk.token_ids.append(number)
    return multiplex_pb2.CallMessage(
        **{"call_id": call_id, "data": response.SerializeToString(), **fields}
    )


def batch(*messages: multiplex_pb2.CallMessage, ends: Any = ()) -> multiplex_pb2.MultiplexResponse:
    return multiplex_pb2.MultiplexResponse(messages=messages, ends=ends)


def end(call_id: int, code: int = 0, **fields: Any) -> multiplex_pb2.CallEnd:
    return multiplex_pb2.CallEnd(call_id=call_id, code=code, **fields)


@asynccontextmanager
async def served(server: RawServer) -> AsyncIterator[Any]:
    """A stub whose calls the server answers, and whose stream is open."""
    async with AsyncExitStack() as stack:
        listening = grpc.aio.server()
        multiplex_pb2_grpc.add_MultiplexServiceServicer_to_server(server, listening)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(server, listening)
        port = listening.add_insecure_port("127.0.0.1:0")
        await listening.start()
        stack.push_async_callback(listening.stop, None)
        channel = open_channel(f"127.0.0.1:{port}")
        stack.push_async_callback(channel.close)
        await opened(channel)
        yield inference_pb2_grpc.InferenceServiceStub(channel)
        assert isinstance(channel, MultiplexChannel)
        stream = channel.stream()
        assert stream is None or not stream._calls, "no call is left"


async def numbers(stub: Any) -> list[int]:
    """The numbers of the messages of a call. Raises MeshError."""
    async with asyncio.timeout(10):
        async with open_stream(stub.Generate, Request(token_ids=[1])) as responses:
            return [response.chunk.token_ids[0] async for response in responses]


async def test_ids_that_are_not_known_and_ends_that_are_repeated_are_ignored(
    no_tasks_left: None,
) -> None:
    """Each call has its own messages, and ends with its first end."""
    server = RawServer()
    server.responses = lambda id: [
        batch(message(id + 1, 9), message(0, 9), ends=[end(id + 1), end(MAX_UINT32)]),
        batch(message(id, 1), message(id, 2), ends=[end(id), end(id, 14), end(id)]),
        batch(message(id, 3), ends=[end(id, 13)]),
    ]
    async with served(server) as stub:
        assert [await numbers(stub) for _ in range(3)] == [[1, 2]] * 3
    assert server.cancelled == []


FLOOD = [batch(message(0, data=bytes(MAX_PART_BYTES)))] * (2 * WINDOW_BYTES // MAX_PART_BYTES)


def to(call_id: int, batches: Sequence[multiplex_pb2.MultiplexResponse]) -> list[Any]:
    """The batches as ones of this call."""
    copies = []
    for each in batches:
        copy = multiplex_pb2.MultiplexResponse()
        copy.CopyFrom(each)
        for one in (*copy.messages, *copy.ends):
            one.call_id = call_id
        copies.append(copy)
    return copies


@pytest.mark.parametrize(
    ("batches", "message_of_error"),
    [
        pytest.param(FLOOD, "more than its credit", id="more than its credit"),
        pytest.param(
            [batch(*[message(0, data=b"", more=True)] * 40)] * 4,
            "a message has more than 100 bytes",
            id="a message without end",
        ),
        pytest.param([batch(message(0, data=b"\xff\xff"))], "cannot be read", id="garbage"),
    ],
)
async def test_a_call_whose_server_breaks_the_rules_fails_alone(
    no_tasks_left: None,
    monkeypatch: pytest.MonkeyPatch,
    batches: Sequence[multiplex_pb2.MultiplexResponse],
    message_of_error: str,
) -> None:
    """It is cancelled at the server; the next call of the stream is answered."""
    monkeypatch.setattr(caller, "MAX_MESSAGE_BYTES", 100)
    server = RawServer()
    server.responses = lambda id: (
        to(id, batches) if id == 1 else [batch(message(id, 5), ends=[end(id)])]
    )
    async with served(server) as stub:
        async with open_stream(stub.Generate, Request(token_ids=[1])) as responses:
            call: Any = responses._call
            await eventually(lambda: call.done() or garbled(call), "it has arrived")
            with pytest.raises(MeshError) as caught:
                async for _ in responses:
                    pass
        assert await numbers(stub) == [5]
        await eventually(lambda: server.cancelled == [1], "the server knows")
    assert caught.value.kind is ErrorKind.INTERNAL
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    assert message_of_error in (cause.details() or "")
    assert server.num_plain == 0


def garbled(call: Any) -> bool:
    """Whether garbage has arrived, which ends the call when it is read."""
    return bool(call._messages and call._messages[0][0] == b"\xff\xff")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"code": 99}, ErrorKind.INTERNAL),
        (
            {"code": 14, "trailing_metadata": [{"key": "a", "value": b"\xff"}]},
            ErrorKind.UNAVAILABLE,
        ),
    ],
)
async def test_an_odd_end_is_an_error_of_its_call(
    no_tasks_left: None, fields: dict[str, Any], kind: ErrorKind
) -> None:
    """An unknown status, and metadata that is no text; the stream goes on."""
    server = RawServer()
    server.responses = lambda id: [batch(ends=[end(id, **(fields if id == 1 else {}))])]
    async with served(server) as stub:
        with pytest.raises(MeshError) as caught:
            await numbers(stub)
        assert await numbers(stub) == []
    assert caught.value.kind is kind


async def test_calls_that_a_server_does_not_name_are_plain(no_tasks_left: None) -> None:
    """A newer caller and an older server: only what both know goes into the stream."""
    server = RawServer()
    server.accepted.paths.append("/mesh.v1.TokenizerService/Encode")
    request = Request(token_ids=[1])
    async with served(server) as stub, open_stream(stub.Generate, request) as responses:
        assert len([response async for response in responses]) == 1
    assert server.num_plain == 1
    assert GENERATE in MULTIPLEXED_PATHS


def test_the_calls_of_servers_that_name_none_do_not_change() -> None:
    """Servers that know no other calls are in use."""
    assert sorted(FIRST_PATHS) == [
        "/mesh.v1.InferenceService/Generate",
        "/mesh.v1.OrchestratorService/Generate",
        "/mesh.v1.OrchestratorService/SummarizeStream",
        "/mesh.v1.TokenizerService/Encode",
    ]
    assert FIRST_PATHS <= MULTIPLEXED_PATHS
