"""A client of the inference service over real gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from inference.api.service import InferenceService
from inference.engine.engine import Engine
from inference.engine.engine_thread import AsyncEngine
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.helpers import Served, serve

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
GREEDY = {"temperature": 0.0, "ignore_eos": True}

Message = inference_pb2.InferenceServiceGenerateResponse


@asynccontextmanager
async def serving(load: Callable[[], Engine]) -> AsyncIterator[Served]:
    """Serve a separate engine; stop both at the end."""
    engine = AsyncEngine(load)
    await engine.start()
    try:
        async with serve(InferenceService(engine).servicer) as served:
            yield served
    finally:
        await engine.stop()


def make_request(
    token_ids: list[int] | None = None, *, resumed: int = 0, **sampling: Any
) -> inference_pb2.InferenceServiceGenerateRequest:
    """A request for a few tokens, greedy by default."""
    return inference_pb2.InferenceServiceGenerateRequest(
        token_ids=PROMPT if token_ids is None else token_ids,
        sampling=common_pb2.SamplingParams(**{"max_tokens": 12, **GREEDY, **sampling}),
        num_resumed_tokens=resumed,
    )


async def collect(
    stub: Stub,
    request: inference_pb2.InferenceServiceGenerateRequest,
    timeout: float = 20.0,
) -> list[Message]:
    """Every message of a stream."""
    async with open_stream(stub.Generate, request, timeout=timeout) as responses:
        return [response async for response in responses]


async def generate(stub: Stub, *args: Any, **sampling: Any) -> list[int]:
    """The token ids of a stream."""
    messages = await collect(stub, make_request(*args, **sampling))
    return [token_id for message in messages for token_id in message.chunk.token_ids]


async def get_load(stub: Stub) -> inference_pb2.GetLoadResponse:
    """The load that the service reports."""
    return await call_unary(stub.GetLoad, inference_pb2.GetLoadRequest(), timeout=5)


async def wait_for_load(stub: Stub, running: int, waiting: int, limit: float = 5.0) -> None:
    """Poll until the load is as given; fail after `limit` seconds with the last load."""
    deadline = time.monotonic() + limit
    while True:
        load = await get_load(stub)
        if (load.num_requests_running, load.num_requests_waiting) == (running, waiting):
            return
        assert time.monotonic() < deadline, f"after {limit} s: {load}"
        await asyncio.sleep(0.005)
