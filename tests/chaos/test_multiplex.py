"""Faults of the stream that carries the calls between two services: every call ends exactly once.

Connections are reset and delayed, reach their greatest age, and streams are replaced, while callers
read, stall, leave and have deadlines; the server is drained and replaced. SEED and DURATION (in
seconds) repeat a run. Processes that are killed and stopped are in `test_failover` and
`test_lost_peers`: their calls go through such streams too.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc import server as server_module
from mesh.rpc.channel import open_channel, open_stream
from mesh.rpc.multiplex import channel as channel_module
from mesh.rpc.multiplex.channel import MultiplexChannel
from mesh.rpc.multiplex.service import ServedCall
from mesh.rpc.server import Server, Servicer
from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.chaos.proxy import Proxy
from tests.helpers import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

SEED = int(os.environ.get("SEED") or "1")
DURATION = float(os.environ.get("DURATION") or "60")
NUM_CALLERS = 24
LARGE = 40_000
"""Token ids of a message that is sent in several parts."""

Request = inference_pb2.InferenceServiceGenerateRequest
Response = inference_pb2.InferenceServiceGenerateResponse


class Counting(inference_pb2_grpc.InferenceServiceServicer):
    """Sends `token_ids[0]` messages with `token_ids[1]` ids each, whose first one counts them."""

    def __init__(self) -> None:
        self.num_running = 0
        self.num_multiplexed = 0

    async def Generate(self, request: Request, context: Any) -> AsyncIterator[Response]:
        number, size = request.token_ids
        self.num_running += 1
        self.num_multiplexed += isinstance(context, ServedCall)
        try:
            for each in range(number):
                ids = [each, *[1] * (size - 1)]
                yield Response(chunk=inference_pb2.TokenChunk(token_ids=ids))
                if each % 16 == 0:
                    await asyncio.sleep(0.001)
        finally:
            self.num_running -= 1


class Callers:
    """Callers of one channel, and how their calls ended."""

    def __init__(self, channel: MultiplexChannel, seed: int) -> None:
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        self._random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.begun = 0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.begun += 1
            self.outcomes[await self._call()] += 1

    async def _call(self) -> str:
        """Make one call, and check what it got; returns how it ended."""
        choose = self._random
        size = LARGE if choose.random() < 0.05 else 1
        number = choose.choice((0, 1, 5, 200)) if size == 1 else 3
        leaves_after = choose.randrange(number + 1) if choose.random() < 0.2 else None
        pause = 0.02 if choose.random() < 0.2 else 0.0
        timeout = choose.choice((0.001, 0.05)) if choose.random() < 0.1 else 60.0
        request, received = Request(token_ids=[number, size]), 0
        try:
            async with open_stream(self._stub.Generate, request, timeout=timeout) as responses:
                async for response in responses:
                    assert len(response.chunk.token_ids) == size
                    assert response.chunk.token_ids[0] == received, "in order, each once"
                    received += 1
                    if received == leaves_after:
                        return "left"
                    if pause and received < 20:
                        await asyncio.sleep(pause)
        except MeshError as error:
            # A server that stops cancels plain calls that it has not begun, which are retried.
            expected = {ErrorKind.UNAVAILABLE, ErrorKind.CANCELLED}
            if timeout < 60:
                expected.add(ErrorKind.DEADLINE)
            if error.kind not in expected:
                raise
            await asyncio.sleep(0.01)
            return error.kind.value
        assert received == number
        return "complete"


class Faults:
    """The server behind a proxy, and what happens to both."""

    def __init__(self, proxy: Proxy, seed: int) -> None:
        self.servicer = Counting()
        self.server: Server
        self._proxy = proxy
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def start(self) -> None:
        register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        self.server = Server([Servicer("mesh.v1.InferenceService", register, self.servicer)])
        port = await self.server.start("127.0.0.1:0")
        await self.server.set_ready(True)
        self._proxy.target = f"127.0.0.1:{port}"

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            name = self._random.choice(("reset", "delay", "replace", "wait"))
            self.done[name] += 1
            if name == "reset":
                self._proxy.reset()
            elif name == "delay":
                self._proxy.delay = self._random.choice((0.0, 0.002, 0.02))
            elif name == "replace":
                await self._replace()
            await asyncio.sleep(self._random.uniform(0.05, 0.5))
        self._proxy.delay = 0.0

    async def _replace(self) -> None:
        old = self.server
        await self.start()
        draining = old.drain(self._random.choice((0.0, 0.2, 1.0)))
        await draining


async def test_every_call_ends_once(monkeypatch: pytest.MonkeyPatch, no_tasks_left: None) -> None:
    """With all its messages, or with the error of the fault; no call and no handler is left."""
    monkeypatch.setattr(server_module, "MAX_CONNECTION_AGE_SECONDS", 1.5)
    monkeypatch.setattr(server_module, "MAX_CONNECTION_AGE_GRACE_SECONDS", 30)
    monkeypatch.setattr(channel_module, "STREAM_SECONDS", 0.4)
    monkeypatch.setattr(channel_module, "RETRY_SECONDS", 0.05)
    stop = asyncio.Event()
    async with Proxy().running() as proxy, AsyncExitStack() as stack:
        faults = Faults(proxy, SEED)
        await faults.start()
        stack.push_async_callback(lambda: faults.server.drain(0))
        channel = open_channel(proxy.address)
        stack.push_async_callback(channel.close)
        assert isinstance(channel, MultiplexChannel)
        callers = Callers(channel, SEED)
        with use_request(RequestContext(request_id="chaos")):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(NUM_CALLERS):
                    tasks.create_task(callers.run(stop))
                tasks.create_task(faults.run(stop))
                await asyncio.sleep(DURATION)
                stop.set()
        print(dict(callers.outcomes), dict(faults.done))
        assert callers.outcomes.total() == callers.begun
        assert callers.outcomes["complete"] > NUM_CALLERS
        assert faults.servicer.num_multiplexed > callers.begun // 10
        await eventually(lambda: faults.servicer.num_running == 0, "all handlers have ended", 30)
        stream = channel.stream()
        assert stream is None or not stream._calls
