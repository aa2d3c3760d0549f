"""mesh.v1.InferenceService: translates between protobuf and an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio

from inference.api import spans
from inference.api.engine_errors import engine_errors
from inference.api.request_account import RequestAccount, num_expected_tokens
from inference.api.spans import StepSpans
from inference.engine import errors
from inference.engine.interface import EngineClient, Finish, SequenceOutput, TokenPair
from inference.sampling.sampling_params import SamplingParams
from mesh.context import annotate, current_request, new_request_id
from mesh.process.backlog import Backlog
from mesh.protocol.finish import REASON_TO_PROTO
from mesh.protocol.logprobs import token_logprob_to_proto
from mesh.protocol.model_kind import KIND_TO_PROTO
from mesh.protocol.sampling_params import sampling_values
from mesh.protocol.usage import Usage, usage_to_proto
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "mesh.v1.InferenceService"

FEW_LOGPROBS = 512
"""So many log probabilities of a prompt are converted faster than a thread is switched twice."""


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves one engine, which must be started."""

    def __init__(
        self,
        engine: EngineClient,
        steps: StepSpans | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        """The caller owns `engine`, and starts and stops it.

        Services of one engine share `steps` and `backlog`.
        """
        self._engine = engine
        self._steps = steps or StepSpans()
        self._backlog = backlog or Backlog()

    @property
    def servicer(self) -> Servicer:
        """The service as `mesh.rpc.server` takes it."""
        register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        return Servicer(SERVICE, register, self)

    async def Generate(
        self, request: inference_pb2.InferenceServiceGenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.InferenceServiceGenerateResponse]:
        current = current_request()
        # Not the caller's request id, which the caller may use more than once.
        request_id = new_request_id()
        with (
            engine_errors(self._backlog),
            self._backlog.work() as work,
            self._steps.request(request_id),
        ):
            adapter = self._adapter(request.adapter, request.model_sha256)
            params = self._sampling_params(request.sampling)
            spans.describe(self._engine.model_info.name, params, request.num_resumed_tokens)
            num_expected = num_expected_tokens(self._engine, len(request.token_ids), params)
            account = RequestAccount(work, num_expected)
            outputs = self._engine.generate(
                request_id,
                request.token_ids,
                params,
                num_resumed_tokens=request.num_resumed_tokens,
                deadline=None if current is None else current.deadline,
                on_abandoned=account.abandoned,
                adapter=adapter,
            )
            async with aclosing(outputs):
                async for output in outputs:
                    account.record(output)
                    if output.prompt_logprobs:
                        yield await _prompt_message(output)
                    finish = output.finish
                    if finish is None or finish.error is None:
                        yield _message(output, finish)
                        continue
                    if output.token_ids:
                        yield _message(output, None)
                    raise finish.error

    async def Embed(
        self, request: inference_pb2.InferenceServiceEmbedRequest, context: Context
    ) -> inference_pb2.InferenceServiceEmbedResponse:
        inputs = [list(each.ids) for each in request.inputs]
        num_tokens = sum(map(len, inputs))
        annotate(num_inputs=len(inputs), prompt_tokens=num_tokens)
        with engine_errors(self._backlog), self._backlog.work() as work:
            if adapter := self._adapter("", request.model_sha256):
                raise errors.InvalidAdapter(
                    f"model must be the base model for embeddings. Given: LoRA adapter {adapter!r}",
                    field="model",
                )
            spans.describe_embeddings(self._engine.model_info.name, len(inputs), num_tokens)
            work.expect(num_tokens)
            vectors = await self._engine.embed(inputs)
            work.done(num_tokens)
        return inference_pb2.InferenceServiceEmbedResponse(
            embeddings=[common_pb2.Embedding(values=vector) for vector in vectors]
        )

    async def Score(
        self, request: inference_pb2.InferenceServiceScoreRequest, context: Context
    ) -> inference_pb2.InferenceServiceScoreResponse:
        pairs = [TokenPair(list(each.token_ids), each.num_first_tokens) for each in request.inputs]
        num_tokens = sum(len(pair.token_ids) for pair in pairs)
        annotate(num_inputs=len(pairs), prompt_tokens=num_tokens)
        with engine_errors(self._backlog), self._backlog.work() as work:
            self._check_model(request.model_sha256)
            spans.describe_embeddings(self._engine.model_info.name, len(pairs), num_tokens)
            work.expect(num_tokens)
            scores = await self._engine.score(pairs)
            work.done(num_tokens)
        return inference_pb2.InferenceServiceScoreResponse(scores=scores)

    async def GetModel(
        self, request: inference_pb2.GetModelRequest, context: Context
    ) -> inference_pb2.GetModelResponse:
        info = self._engine.model_info
        return inference_pb2.GetModelResponse(
            name=info.name,
            architecture=info.architecture,
            context_length=info.max_context,
            eos_token_ids=info.eos_token_ids,
            dtype=info.dtype,
            device=info.device,
            vocab_size=info.vocab_size,
            num_parameters=info.num_parameters,
            vocabulary_sha256=info.vocabulary_sha256,
            model_sha256=info.model_sha256,
            kind=KIND_TO_PROTO[info.kind],
            embedding_length=info.embedding_length,
            adapters=[
                inference_pb2.LoadedAdapter(
                    name=each.name,
                    model_sha256=each.model_sha256,
                    path="" if each.is_of_settings else each.path,
                )
                for each in self._engine.adapters
            ],
            allows_loading_adapters=self._engine.allows_loading_adapters,
        )

    async def LoadAdapter(
        self, request: inference_pb2.LoadAdapterRequest, context: Context
    ) -> inference_pb2.LoadAdapterResponse:
        with engine_errors(self._backlog):
            info = await self._engine.load_adapter(
                request.name, request.path, request.copied_sha256
            )
        return inference_pb2.LoadAdapterResponse(model_sha256=info.model_sha256)

    async def UnloadAdapter(
        self, request: inference_pb2.UnloadAdapterRequest, context: Context
    ) -> inference_pb2.UnloadAdapterResponse:
        with engine_errors(self._backlog):
            self._engine.unload_adapter(request.name)
        return inference_pb2.UnloadAdapterResponse()

    async def GetLoad(
        self, request: inference_pb2.GetLoadRequest, context: Context
    ) -> inference_pb2.GetLoadResponse:
        load = self._engine.load()
        return inference_pb2.GetLoadResponse(
            num_requests_running=load.num_running,
            num_requests_waiting=load.num_waiting,
            kv_cache_usage=load.kv_usage,
            num_cached_tokens=load.num_cached_tokens,
            max_num_seqs=load.max_num_seqs,
            kv_cache_capacity_tokens=load.kv_capacity_tokens,
        )

    def _adapter(self, name: str, model_sha256: str) -> str:
        """Name of the adapter that a request wants; "" for none. Raises EngineUnavailable."""
        for each in self._engine.adapters:
            if each.model_sha256 == model_sha256 and name in ("", each.name):
                return each.name
        self._check_model(model_sha256)
        return name

    def _check_model(self, wanted: str) -> None:
        """Refuses a prompt for another model. Raises EngineUnavailable.

        The caller's view may be outdated: a replica can restart with other weights.
        """
        served = self._engine.model_info.model_sha256
        if wanted and wanted != served:
            raise errors.EngineUnavailable(
                f"model_sha256 must be that of the served model, {served or 'unknown'}, "
                f"given {wanted}"
            )

    def _sampling_params(self, message: common_pb2.SamplingParams) -> SamplingParams:
        """The request's values, else the model's own defaults, else the engine's."""
        defaults = self._engine.model_info.default_sampling
        return SamplingParams(**{**defaults, **sampling_values(message)})


async def _prompt_message(
    output: SequenceOutput,
) -> inference_pb2.InferenceServiceGenerateResponse:
    if len(output.prompt_logprobs) <= FEW_LOGPROBS:
        return _to_proto(output)
    return await asyncio.to_thread(_to_proto, output)


def _to_proto(output: SequenceOutput) -> inference_pb2.InferenceServiceGenerateResponse:
    logprobs = [token_logprob_to_proto(logprobs) for logprobs in output.prompt_logprobs]
    return inference_pb2.InferenceServiceGenerateResponse(
        chunk=inference_pb2.TokenChunk(prompt_logprobs=logprobs)
    )


def _message(
    output: SequenceOutput, finish: Finish | None
) -> inference_pb2.InferenceServiceGenerateResponse:
    """The output's tokens, and the finish if there is one; the first message may have no tokens."""
    tokens = None
    if output.token_ids or finish is None:
        logprobs = [token_logprob_to_proto(logprobs) for logprobs in output.logprobs]
        tokens = inference_pb2.TokenChunk(token_ids=output.token_ids, logprobs=logprobs)
    return inference_pb2.InferenceServiceGenerateResponse(
        chunk=tokens, finish=None if finish is None else _finish(finish)
    )


def _finish(finish: Finish) -> inference_pb2.GenerationFinish:
    timings = finish.timings
    return inference_pb2.GenerationFinish(
        reason=REASON_TO_PROTO[finish.reason],
        usage=usage_to_proto(
            Usage(finish.num_prompt_tokens, finish.num_completion_tokens, finish.num_cached_tokens)
        ),
        queue_seconds=timings.queue_seconds,
        prefill_seconds=timings.prefill_seconds,
        decode_seconds=timings.decode_seconds,
    )
