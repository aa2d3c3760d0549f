"""Whether the orchestrator can do its work: an engine is ready, and its model's tokenizer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import MeshError
from mesh.process.lifecycle import SetReady
from mesh.rpc.channel import ResponseStream
from orchestrator.clients.tokenizer import SERVICE as TOKENIZER_SERVICE
from orchestrator.clients.tokenizers import Tokenizers, TokenizerUpstream
from orchestrator.routing.replicas import Replicas

logger = logging.getLogger("orchestrator.readiness")

RETRY_SECONDS = 0.2

Tell = Callable[[], Awaitable[None]]


class Readiness:
    """Follows the health of the tokenizers and of the replicas."""

    def __init__(self, tokenizers: Tokenizers, replicas: Replicas) -> None:
        """Both stay their owner's."""
        self._tokenizers = tokenizers
        self._replicas = replicas
        self._serving: set[str] = set()
        """Targets of the tokenizers that serve."""

    @property
    def ready(self) -> bool:
        """Whether some model can be asked for now."""
        return any(
            self._tokenizers.target_of(model) in self._serving for model in self._replicas.models
        )

    async def watch(self, set_ready: SetReady) -> None:
        """Tells `set_ready` at every change, until cancelled."""
        lock = asyncio.Lock()

        async def tell() -> None:
            # One at a time, so that the last word is the newest state.
            async with lock:
                await set_ready(self.ready)

        async with asyncio.TaskGroup() as tasks:
            for upstream in self._tokenizers.upstreams:
                watching = self._watch_tokenizer(upstream, tell)
                tasks.create_task(watching, name=f"watch {upstream.target}")
            tasks.create_task(self._watch_replicas(tell), name="watch replicas")

    async def _watch_replicas(self, tell: Tell) -> None:
        while True:
            await tell()
            await self._replicas.wait_changed()

    async def _watch_tokenizer(self, upstream: TokenizerUpstream, tell: Tell) -> None:
        health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(upstream.channel)
        request = health_pb2.HealthCheckRequest(service=TOKENIZER_SERVICE)
        while True:
            try:
                updates = ResponseStream(health.Watch(request, wait_for_ready=True))
                async for update in updates:
                    if update.status != health_pb2.HealthCheckResponse.SERVING:
                        # One replica goes: ask anew, which may lead to another.
                        break
                    # Fetched before the first request needs it.
                    await upstream.client.current()
                    self._serving.add(upstream.target)
                    await tell()
                updates.cancel()
            except MeshError as error:
                logger.debug("tokenizer lost", extra={"error": str(error)})
            self._serving.discard(upstream.target)
            await tell()
            await asyncio.sleep(RETRY_SECONDS)
