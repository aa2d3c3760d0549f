"""vLLM by gRPC: `vllm.grpc.engine.VllmEngine`, which `vllm serve --grpc` serves.

Its messages are mapped in `request` and `response`, its errors in `errors`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto.generated import vllm_engine_pb2, vllm_engine_pb2_grpc

from mesh.context import current_request
from mesh.errors import ErrorKind, MeshError, from_rpc_error
from mesh.hub.vllm_tokenizer import fetch_tokenizer
from mesh.protocol.tokens import TokenChunk
from mesh.rpc.channel import ResponseStream, call_unary, open_stream
from orchestrator.generation import ModelInfo
from orchestrator.routing.backends.backend import (
    CHECK_SECONDS,
    EngineLoad,
    GenerateCall,
    TokenPair,
    WithoutAdapters,
)
from orchestrator.routing.backends.polled_health import PolledHealth
from orchestrator.routing.backends.vllm_grpc.errors import engine_error
from orchestrator.routing.backends.vllm_grpc.model import ModelFiles, SamplingDefaults, read_files
from orchestrator.routing.backends.vllm_grpc.request import generate_request
from orchestrator.routing.backends.vllm_grpc.response import ResponseReader

logger = logging.getLogger("orchestrator.routing.vllm")

SERVICE = "vllm.grpc.engine.VllmEngine"

ABORT_SECONDS = 2.0
"""Timeout of the call that aborts a request whose stream was left."""

CONCURRENT_EMBEDDINGS = 16
"""Maximum concurrent calls for the inputs of one batch: vLLM embeds one input a call."""

_NOT_NOW = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE, ErrorKind.CANCELLED})
"""Kinds of errors after which the engine is asked for its files again."""

_SERVING = health_pb2.HealthCheckResponse.SERVING


class VllmStream:
    """The chunks of one generation."""

    def __init__(self, backend: VllmBackend, call: GenerateCall, request: Any) -> None:
        """`request` is the protobuf message of `call`."""
        self._backend = backend
        self._constraint = call.sampling.constraint
        self._request_id: str = request.request_id
        self._call = open_stream(backend.stub.Generate, request, parent=call.parent)
        self._reader = ResponseReader(call)
        self._ended = False
        """Whether the engine has ended the stream."""

    async def __aenter__(self) -> Self:
        self._responses: ResponseStream[Any] = await self._call.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._call.__aexit__(kind, error, traceback)
        finally:
            if not self._ended:
                self._backend.abort(self._request_id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenChunk:
        try:
            response = await anext(self._responses)
        except MeshError as error:
            self._ended = error.kind is not ErrorKind.CANCELLED
            raise engine_error(error, self._constraint) from error
        except StopAsyncIteration:
            self._ended = True
            raise
        chunk = self._reader.read(response)
        if chunk.finish is not None:
            self._ended = True
            self._responses.has_last()
        return chunk

    def cancel(self) -> None:
        """Cancels the call; reading then raises MeshError (CANCELLED)."""
        self._responses.cancel()


class VllmBackend(PolledHealth, WithoutAdapters):
    """A client of one engine."""

    resumes_constraints = False

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """The caller owns `channel`."""
        super().__init__()
        self._channel = channel
        self.stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        self._health: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
        self._defaults = SamplingDefaults()
        self._aborting: set[asyncio.Task[None]] = set()
        self._known = ModelFiles()
        self._connected: asyncio.Task[None] | None = None
        """Ends with the connection on which the files were fetched."""

    async def check(self, timeout: float) -> bool:
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            response = await self._health.Check(request, timeout=timeout, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                message = f"the engine does not serve {SERVICE}"
                raise MeshError(ErrorKind.UNIMPLEMENTED, message) from error
            raise from_rpc_error(error) from error
        return bool(response.status == _SERVING)

    async def model(self) -> ModelInfo:
        request = vllm_engine_pb2.GetModelInfoRequest()
        info = await call_unary(self.stub.GetModelInfo, request, timeout=CHECK_SECONDS)
        self._defaults = SamplingDefaults.parse(info.default_sampling_params_json)
        files = await self._files()
        return ModelInfo(
            info.served_model_name or info.model_path,
            info.max_context_length,
            frozenset(info.eos_token_ids) | files.eos_token_ids,
            files.vocabulary_sha256,
        )

    async def load(self) -> EngineLoad:
        request = vllm_engine_pb2.GetLoadsRequest()
        response = await call_unary(self.stub.GetLoads, request, timeout=CHECK_SECONDS)
        loads = response.loads  # one for each data-parallel rank
        usage = sum(load.token_usage for load in loads) / max(1, len(loads))
        return EngineLoad(
            sum(load.num_running_reqs for load in loads),
            sum(load.num_waiting_reqs for load in loads),
            usage,
        )

    def generate(self, call: GenerateCall) -> VllmStream:
        request = generate_request(call, self._defaults, _request_id())
        return VllmStream(self, call, request)

    async def embed(
        self, inputs: Sequence[Sequence[int]], model_sha256: str = ""
    ) -> list[Sequence[float]]:
        """Calls the engine once for each input. `model_sha256` is not checked: vLLM has none."""
        limit = asyncio.Semaphore(CONCURRENT_EMBEDDINGS)

        async def embed_one(number: int, token_ids: Sequence[int]) -> Sequence[float]:
            request = vllm_engine_pb2.EmbedRequest(
                request_id=_request_id(),
                tokenized=vllm_engine_pb2.TokenizedInput(input_ids=token_ids),
            )
            async with limit:
                try:
                    response = await call_unary(self.stub.Embed, request)
                except MeshError as error:
                    raise engine_error(error, param=f"inputs[{number}]") from error
            vector: Sequence[float] = response.embedding
            return vector

        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(embed_one(*each)) for each in enumerate(inputs)]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return [task.result() for task in running]

    async def score(self, pairs: Sequence[TokenPair], model_sha256: str = "") -> Sequence[float]:
        """Not implemented."""
        raise MeshError(ErrorKind.UNIMPLEMENTED, "vLLM's cross-encoders are not used")

    def abort(self, request_id: str) -> None:
        """Aborts a request in the background. Cancelling its stream frees its slot as well,
        but not where a proxy holds the stream open."""
        task = asyncio.create_task(self._abort(request_id), name="abort")
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

    async def close(self) -> None:
        """Ends the calls that abort requests; the caller closes the channel."""
        await self._forget_files()
        for task in self._aborting:
            task.cancel()
        await asyncio.gather(*self._aborting, return_exceptions=True)

    async def _abort(self, request_id: str) -> None:
        request = vllm_engine_pb2.AbortRequest(request_ids=[request_id])
        try:
            await self.stub.Abort(request, timeout=ABORT_SECONDS)
        except grpc.aio.AioRpcError as error:
            logger.debug("request not aborted", extra={"code": error.code().name})

    async def _files(self) -> ModelFiles:
        """What the model's files say, where the engine serves them.

        They are fetched once for each connection, not whenever the engine is found again after a
        failed call: an archive has up to 128 MiB. Another process has another connection.
        """
        if self._connected is not None and not self._connected.done():
            return self._known
        await self._forget_files()
        lost = self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self._connected = asyncio.create_task(lost, name="vLLM connection")
        try:
            self._known = await self._fetched()
        except BaseException:
            await self._forget_files()
            raise
        return self._known

    async def _forget_files(self) -> None:
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.cancel()
            await asyncio.gather(connected, return_exceptions=True)

    async def _fetched(self) -> ModelFiles:
        try:
            files = await fetch_tokenizer(self._channel)
        except MeshError as error:
            if error.kind in _NOT_NOW:
                raise
            logger.warning("engine serves no tokenizer", extra={"error": error.message})
            return ModelFiles()
        return await asyncio.to_thread(read_files, files)


def _request_id() -> str:
    """A unique id of one call, which begins with the request's."""
    request = current_request()
    prefix = f"{request.request_id}-" if request is not None else ""
    return f"{prefix}{secrets.token_hex(8)}"
