"""Whether the orchestrator can do its work: a tokenizer and at least one engine are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.lifecycle import SetReady
from orchestrator.clients.tokenizer import SERVICE as TOKENIZER_SERVICE
from orchestrator.replicas import Replicas

RETRY_SECONDS = 0.2

Tell = Callable[[], Awaitable[None]]


class Readiness:
    """Follows the health of the tokenizer and of the replicas."""

    def __init__(self, tokenizer: grpc.aio.Channel, replicas: Replicas) -> None:
        """`tokenizer` stays its owner's."""
        self._health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(tokenizer)
        self._replicas = replicas
        self._tokenizer_ready = False

    async def watch(self, set_ready: SetReady) -> None:
        """Tells `set_ready` at every change, until cancelled."""
        lock = asyncio.Lock()

        async def tell() -> None:
            # One at a time, so that the last word is the newest state.
            async with lock:
                await set_ready(self._tokenizer_ready and bool(self._replicas.ready))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_tokenizer(tell), name="watch tokenizer")
            tasks.create_task(self._watch_replicas(tell), name="watch replicas")

    async def _watch_replicas(self, tell: Tell) -> None:
        while True:
            await tell()
            await self._replicas.wait_changed()

    async def _watch_tokenizer(self, tell: Tell) -> None:
        request = health_pb2.HealthCheckRequest(service=TOKENIZER_SERVICE)
        while True:
            try:
                async for update in self._health.Watch(request, wait_for_ready=True):
                    self._tokenizer_ready = update.status == health_pb2.HealthCheckResponse.SERVING
                    await tell()
            except grpc.aio.AioRpcError:
                pass  # told below: a tokenizer that does not answer is not ready
            self._tokenizer_ready = False
            await tell()
            await asyncio.sleep(RETRY_SECONDS)
