"""Weir's own engines: `mesh.v1.InferenceService`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Self

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import ErrorKind, MeshError, from_rpc_error
from mesh.protocol.model_kind import kind_from_proto
from mesh.protocol.sampling_params import sampling_to_proto
from mesh.protocol.tokens import TokenChunk, token_chunk_from_proto
from mesh.rpc.channel import ResponseStream, call_unary, open_stream
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from orchestrator.generation import ModelInfo, ReplicaAdapters
from orchestrator.routing.backends.backend import (
    CHECK_SECONDS,
    LOAD_ADAPTER_SECONDS,
    EngineLoad,
    GenerateCall,
    TokenPair,
)
from orchestrator.routing.direct_path import Take, Taken
from orchestrator.routing.read_ahead import merged

SERVICE = "mesh.v1.InferenceService"

_NO_TOKENS = inference_pb2.InferenceServiceGenerateResponse()

_SERVING = health_pb2.HealthCheckResponse.SERVING


class WeirStream:
    """The chunks of one generation."""

    def __init__(
        self,
        call: open_stream[
            inference_pb2.InferenceServiceGenerateRequest,
            inference_pb2.InferenceServiceGenerateResponse,
        ],
    ) -> None:
        self._call = call

    async def __aenter__(self) -> Self:
        self._responses = await self._call.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._call.__aexit__(kind, error, traceback)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        response = await anext(self._responses)
        chunk = token_chunk_from_proto(response)
        if chunk.finish is not None:
            self._responses.has_last()
        return chunk

    def pass_on(self, take: Take) -> None:
        """Calls `take` with the chunks that arrive while a reader waits, instead of the reader."""

        def pass_on(
            responses: list[inference_pb2.InferenceServiceGenerateResponse],
            retry: Callable[[], None],
        ) -> list[inference_pb2.InferenceServiceGenerateResponse] | None:
            chunk = merged(list(map(token_chunk_from_proto, responses)))
            match take(chunk, retry):
                case Taken.ALL:
                    return []
                case Taken.LATER:
                    return None
                case Taken.WAKE:
                    return [_NO_TOKENS]
            return responses

        self._responses.pass_on(pass_on)

    @property
    def has_ready(self) -> bool | None:
        """Whether the next chunk has arrived; None if that is not known."""
        return self._responses.has_ready

    def cancel(self) -> None:
        """Cancels the call; reading then raises MeshError (CANCELLED)."""
        self._responses.cancel()


class WeirBackend:
    """A client of one engine."""

    resumes_constraints = True

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """The caller owns `channel`."""
        self._stub: inference_pb2_grpc.InferenceServiceAsyncStub
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self._health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
        self._updates: ResponseStream[health_pb2.HealthCheckResponse] | None = None

    async def health(self) -> AsyncGenerator[bool, None]:
        """The state now and at each change. Raises MeshError, UNIMPLEMENTED for another engine."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        self._updates = ResponseStream(self._health.Watch(request, wait_for_ready=True))
        try:
            async for update in self._updates:
                if update.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
                    raise MeshError(ErrorKind.UNIMPLEMENTED, f"the engine does not serve {SERVICE}")
                yield update.status == _SERVING
        finally:
            self._updates.cancel()

    def recheck(self) -> None:
        """Ends the watch, which sends changes only; a new one sends the current state first."""
        if self._updates is not None:
            self._updates.cancel()

    async def check(self, timeout: float) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            response = await self._health.Check(request, timeout=timeout, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return bool(response.status == _SERVING)

    async def model(self) -> ModelInfo:
        return _model(await self._describe())

    async def adapters(self) -> ReplicaAdapters:
        info = await self._describe()
        model = _model(info)
        adapters = tuple(
            model._replace(name=each.name, model_sha256=each.model_sha256, base=info.name)
            for each in info.adapters
        )
        paths = tuple(each.path for each in info.adapters)
        return ReplicaAdapters(adapters, info.allows_loading_adapters, paths)

    async def _describe(self) -> inference_pb2.GetModelResponse:
        request = inference_pb2.GetModelRequest()
        return await call_unary(self._stub.GetModel, request, timeout=CHECK_SECONDS)

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> None:
        request = inference_pb2.LoadAdapterRequest(
            name=name, path=path, copied_sha256=copied_sha256
        )
        await call_unary(self._stub.LoadAdapter, request, timeout=LOAD_ADAPTER_SECONDS)

    async def unload_adapter(self, name: str) -> None:
        request = inference_pb2.UnloadAdapterRequest(name=name)
        await call_unary(self._stub.UnloadAdapter, request, timeout=CHECK_SECONDS)

    async def load(self) -> EngineLoad:
        request = inference_pb2.GetLoadRequest()
        load = await call_unary(self._stub.GetLoad, request, timeout=CHECK_SECONDS)
        return EngineLoad(load.num_requests_running, load.num_requests_waiting, load.kv_cache_usage)

    def generate(self, call: GenerateCall) -> WeirStream:
        """Refused with UNAVAILABLE by an engine whose model has another digest."""
        request = inference_pb2.InferenceServiceGenerateRequest(
            token_ids=call.token_ids,
            sampling=sampling_to_proto(call.sampling),
            num_resumed_tokens=call.num_resumed_tokens,
            model_sha256=call.model_sha256,
        )
        return WeirStream(open_stream(self._stub.Generate, request, parent=call.parent))

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """Refused with UNAVAILABLE by an engine whose model has another digest."""
        request = inference_pb2.InferenceServiceEmbedRequest(
            inputs=[common_pb2.TokenIds(ids=token_ids) for token_ids in inputs],
            model_sha256=model_sha256,
        )
        response = await call_unary(self._stub.Embed, request)
        return [embedding.values for embedding in response.embeddings]

    async def score(self, pairs: Sequence[TokenPair], model_sha256: str = "") -> Sequence[float]:
        """Refused with UNAVAILABLE by an engine whose model has another digest."""
        request = inference_pb2.InferenceServiceScoreRequest(
            inputs=[inference_pb2.TokenPair(**pair._asdict()) for pair in pairs],
            model_sha256=model_sha256,
        )
        return (await call_unary(self._stub.Score, request)).scores

    async def close(self) -> None:
        """Does nothing: the caller closes the channel."""


def _model(info: inference_pb2.GetModelResponse) -> ModelInfo:
    return ModelInfo(
        info.name,
        info.context_length,
        frozenset(info.eos_token_ids),
        info.vocabulary_sha256,
        info.model_sha256,
        kind_from_proto(info.kind),
        info.embedding_length,
    )
