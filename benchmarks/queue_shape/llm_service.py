"""The LLM service of the queue architecture: pushes jobs to Redis, relays the published replies.

It implements the orchestrator's gRPC service with the same server, interceptors, tokenizer and
detokenizer, so that the comparison measures only the queue. All requests share one Redis channel,
which saves a subscription per request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio as redis

from benchmarks.queue_shape.settings import JOBS, QueueSettings
from mesh.context import new_request_id
from mesh.errors import ErrorKind, MeshError
from mesh.process.lifecycle import SetReady, run
from mesh.process.settings import load
from mesh.rpc.channel import open_channel
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from orchestrator.clients.tokenizer import TokenizerClient

SERVICE = "mesh.v1.OrchestratorService"


class QueueService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Implements `Generate` for text; the other RPCs are unimplemented."""

    def __init__(self, tokenizer: TokenizerClient, connection: redis.Redis, replies: str) -> None:
        self._tokenizer = tokenizer
        self._redis = connection
        self._replies = replies
        self._waiting: dict[str, asyncio.Queue[dict[str, Any]]] = {}

    @property
    def servicers(self) -> Sequence[Servicer]:
        """The gRPC servicers for the server."""
        register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
        return [Servicer(SERVICE, register, self)]

    async def watch_ready(self, set_ready: SetReady) -> None:
        """Ready from the start."""
        await set_ready(True)
        await asyncio.Event().wait()

    async def Generate(
        self, request: orchestrator_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.GenerateResponse]:
        """Encodes the prompt, queues a job, and streams the detokenized replies."""
        encoded = await self._tokenizer.encode_text(request.text)
        job_id = new_request_id()
        queue = self._waiting[job_id] = asyncio.Queue()
        job = {
            "id": job_id,
            "reply": self._replies,
            "token_ids": list(encoded.token_ids),
            "max_tokens": request.sampling.max_tokens,
        }
        detokenizer = encoded.decoder.stream()
        started = False
        try:
            await self._redis.lpush(JOBS, json.dumps(job))
            while True:
                event = await queue.get()
                if "error" in event:
                    raise MeshError(ErrorKind.UNAVAILABLE, event["error"])
                message = orchestrator_pb2.GenerateResponse()
                if not started:
                    started = True
                    message.started.model = "demo"
                    message.started.prompt_tokens = len(encoded.token_ids)
                finished = "finish" in event
                text = detokenizer.push(event["ids"])
                if finished:
                    text += detokenizer.flush()
                    message.finish.reason = common_pb2.FINISH_REASON_LENGTH
                    message.finish.usage.CopyFrom(common_pb2.Usage(**event["finish"]))
                if text:
                    message.delta.text, message.delta.num_tokens = text, len(event["ids"])
                if message.ListFields():
                    yield message
                if finished:
                    return
        finally:
            del self._waiting[job_id]

    async def listen(self) -> None:
        """Dispatches published replies to the waiting requests."""
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(self._replies)
            async for message in subscription.listen():
                if message["type"] != "message":
                    continue
                event = json.loads(message["data"])
                queue = self._waiting.get(event["id"])
                if queue is not None:
                    queue.put_nowait(event)

    async def _unimplemented(self, request: Any, context: Any) -> Any:
        raise MeshError(ErrorKind.UNIMPLEMENTED, "not part of the comparison")

    SummarizeStream = Summarize = ListModels = _unimplemented  # type: ignore[assignment]
    ListRequests = CancelRequest = Embed = _unimplemented  # type: ignore[assignment]


@asynccontextmanager
async def application(settings: QueueSettings) -> AsyncIterator[QueueService]:
    """Connects to tokenizer and Redis, and yields the service."""
    channel = open_channel(settings.tokenizer_target)
    connection = redis.Redis(port=settings.redis_port, max_connections=256)
    tokenizer = TokenizerClient(channel)
    await tokenizer.current()
    service = QueueService(tokenizer, connection, f"replies:{new_request_id()}")
    listening = asyncio.create_task(service.listen(), name="listen")
    try:
        yield service
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await connection.aclose()
        await channel.close()


if __name__ == "__main__":
    loaded = load(QueueSettings, "queue-llm")
    run("queue-llm", loaded, lambda: application(loaded))
