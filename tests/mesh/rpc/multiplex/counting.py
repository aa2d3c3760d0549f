"""A service whose calls send as many messages as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc.aio

from mesh.context import RequestContext, current_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.multiplex.service import ServedCall
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.helpers import Served, eventually
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
