"""One inference engine: its channel, health, model, and token streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.trace import Span

from mesh.errors import MeshError
from mesh.protocol.sampling_params import SamplingParams, sampling_to_proto
from mesh.protocol.tokens import TokenChunk, token_chunk_from_proto
from mesh.rpc.channel import ResponseStream, call_unary, open_channel, open_stream
from mesh.rpc.tls import NO_TLS, TlsFiles
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from orchestrator.generation import ModelInfo
from orchestrator.routing.circuit import Circuit, SlowStart
from orchestrator.routing.first_tokens import FirstTokens

logger = logging.getLogger("orchestrator.replica")

SERVICE = "mesh.v1.InferenceService"
RETRY_SECONDS = 0.2
"""Delay before the health of an unreachable replica is watched again."""

CONFIRM_SECONDS = 1.0
"""Timeout of the health check of a replica that was just lost; enough for a reconnection."""


class ReplicaStream:
    """The chunks of one generation, as an async iterator; the last one has the finish.

    The call runs inside the block; leaving the block cancels it. Reading raises MeshError.
    """

    def __init__(
        self,
        call: open_stream[
            inference_pb2.InferenceServiceGenerateRequest,
            inference_pb2.InferenceServiceGenerateResponse,
        ],
    ) -> None:
        self._call = call

    async def __aenter__(self) -> ReplicaStream:
        self._responses = await self._call.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._call.__aexit__(*error)

    def __aiter__(self) -> ReplicaStream:
        return self

    async def __anext__(self) -> TokenChunk:
        response = await anext(self._responses)
        chunk = token_chunk_from_proto(response)
        if chunk.finish is not None:
            self._responses.has_last()
        return chunk

    def cancel(self) -> None:
        """Cancels the call; reading then raises MeshError (CANCELLED)."""
        self._responses.cancel()


class Replica:
    """An engine at one address. It becomes ready only while `watch` runs."""

    def __init__(
        self,
        address: str,
        on_change: Callable[[], None],
        tls: TlsFiles = NO_TLS,
        server_name: str | None = None,
    ) -> None:
        """`on_change` is called when `ready` changes; the TLS certificate is for `server_name`."""
        self.address = address
        self.model: ModelInfo | None = None
        self.outstanding_tokens = 0
        """Prompt and completion tokens of this orchestrator's requests on the replica."""
        self.retired = False
        """No name resolves to it any more: it gets no new requests; running streams go on."""
        self.circuit = Circuit()
        self.slow_start = SlowStart()
        self.first_tokens = FirstTokens()
        self._serving = False
        self._updates: ResponseStream[health_pb2.HealthCheckResponse] | None = None
        self._on_change = on_change
        self._channel = open_channel(address, tls, server_name)
        self._stub: inference_pb2_grpc.InferenceServiceAsyncStub
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(self._channel)

    @property
    def ready(self) -> bool:
        """Whether it can take requests, as far as is known."""
        return self._serving and self.model is not None and not self.retired

    async def watch(self) -> None:
        """Watches the replica's health until cancelled, then closes the channel."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            while True:
                self._updates = ResponseStream(self._health.Watch(request, wait_for_ready=True))
                try:
                    async for update in self._updates:
                        await self._update(update.status == health_pb2.HealthCheckResponse.SERVING)
                except MeshError as error:
                    logger.debug("health watch failed", extra={"error": str(error)})
                except Exception:
                    # The watch must continue, or the replica would never become ready again.
                    logger.exception(
                        "unexpected error in health watch", extra={"address": self.address}
                    )
                self._set_serving(False)
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            self._set_serving(False)
            await self._channel.close()

    def suspect(self) -> None:
        """Marks the replica as not ready after a failed call, until its health is known again."""
        self._set_serving(False)
        if self._updates is not None:
            # A health watch sends changes only; a new one sends the current state first.
            self._updates.cancel()

    async def confirm(self) -> bool:
        """Checks the health now, without waiting for the watch; returns `ready`."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            response = await self._health.Check(
                request, timeout=CONFIRM_SECONDS, wait_for_ready=True
            )
            await self._update(response.status == health_pb2.HealthCheckResponse.SERVING)
        except (grpc.aio.AioRpcError, MeshError) as error:
            logger.debug("health check failed", extra={"error": str(error)})
        return self.ready

    def generate(
        self,
        token_ids: Sequence[int],
        sampling: SamplingParams,
        num_resumed_tokens: int,
        parent: Span | None = None,
        model_sha256: str = "",
    ) -> ReplicaStream:
        """A token stream, to be entered. `parent` of the call's span; None: the current span.

        A replica whose model has another digest than `model_sha256` refuses it (UNAVAILABLE).
        """
        request = inference_pb2.InferenceServiceGenerateRequest(
            token_ids=token_ids,
            sampling=sampling_to_proto(sampling),
            num_resumed_tokens=num_resumed_tokens,
            model_sha256=model_sha256,
        )
        return ReplicaStream(open_stream(self._stub.Generate, request, parent=parent))

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """One vector for each of at most 64 inputs. Raises MeshError.

        A replica whose model has another digest than `model_sha256` refuses them (UNAVAILABLE).
        """
        request = inference_pb2.InferenceServiceEmbedRequest(
            inputs=[common_pb2.TokenIds(ids=token_ids) for token_ids in inputs],
            model_sha256=model_sha256,
        )
        response = await call_unary(self._stub.Embed, request)
        return [embedding.values for embedding in response.embeddings]

    async def _update(self, serving: bool) -> None:
        if serving and self.model is None:
            info = await call_unary(self._stub.GetModel, inference_pb2.GetModelRequest(), timeout=5)
            self.model = ModelInfo(
                info.name,
                info.context_length,
                frozenset(info.eos_token_ids),
                info.vocabulary_sha256,
                info.model_sha256,
            )
        self._set_serving(serving)

    def _set_serving(self, serving: bool) -> None:
        if serving != self._serving:
            self._serving = serving
            if serving:
                self.slow_start.restart()
            else:
                # It may serve another model when it comes back.
                self.model = None
            level = logging.INFO if serving else logging.WARNING
            message = "replica ready" if serving else "replica lost"
            logger.log(level, message, extra={"address": self.address})
            self._on_change()
