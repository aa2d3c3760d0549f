"""Whether the orchestrator can do its work: a tokenizer and at least one engine are ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.channel import ResponseStream
from mesh.errors import MeshError
from mesh.lifecycle import SetReady
from orchestrator.clients.tokenizer import SERVICE as TOKENIZER_SERVICE
from orchestrator.clients.tokenizer import TokenizerClient
from orchestrator.replicas import Replicas

logger = logging.getLogger("orchestrator.readiness")

RETRY_SECONDS = 0.2

Tell = Callable[[], Awaitable[None]]


class Readiness:
    """Follows the health of the tokenizer and of the replicas."""

    def __init__(
        self, channel: grpc.aio.Channel, tokenizer: TokenizerClient, replicas: Replicas
    ) -> None:
        """`channel` leads to the tokenizer and stays its owner's."""
        self._health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
        self._tokenizer = tokenizer
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
                updates = ResponseStream(self._health.Watch(request, wait_for_ready=True))
                async for update in updates:
                    serving = update.status == health_pb2.HealthCheckResponse.SERVING
                    if serving:
                        # Fetched before the first request needs it.
                        await self._tokenizer.current()
                    self._tokenizer_ready = serving
                    await tell()
            except MeshError as error:
                logger.debug("tokenizer lost", extra={"error": str(error)})
            self._tokenizer_ready = False
            await tell()
            await asyncio.sleep(RETRY_SECONDS)
