"""mesh.v1.InferenceService on an engine: protobuf in and out, and nothing of how it is done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio

from inference.api import metrics, spans
from inference.api.spans import StepSpans
from inference.engine import errors
from inference.engine.interface import EngineClient, Finish, SequenceOutput
from inference.sampling.sampling_params import SamplingParams
from mesh.context import annotate, current_request, new_request_id
from mesh.errors import ErrorKind, MeshError
from mesh.process.backlog import Backlog
from mesh.protocol.finish import REASON_TO_PROTO
from mesh.protocol.logprobs import token_logprob_to_proto
from mesh.protocol.sampling_params import sampling_values
from mesh.protocol.usage import Usage, usage_to_proto
from mesh.rpc.server import Servicer
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_KIND_OF_ERROR: tuple[tuple[type[errors.EngineError], ErrorKind], ...] = (
    (errors.InvalidSamplingParams, ErrorKind.INVALID_REQUEST),
    (errors.InvalidPrompt, ErrorKind.INVALID_REQUEST),
    (errors.ContextTooLong, ErrorKind.CONTEXT_TOO_LONG),
    (errors.Overloaded, ErrorKind.OVERLOADED),
    (errors.DeadlineExceeded, ErrorKind.DEADLINE),
    # The callers' cure for both is another replica.
    (errors.EngineUnavailable, ErrorKind.UNAVAILABLE),
    (errors.StepFailed, ErrorKind.UNAVAILABLE),
)

SERVICE = "mesh.v1.InferenceService"


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Serves one engine, which must be started."""

    def __init__(self, engine: EngineClient, steps: StepSpans | None = None) -> None:
        """`engine` stays its owner's: this neither starts nor stops it."""
        self._engine = engine
        self._steps = steps or StepSpans()
        self._backlog = Backlog()

    @property
    def servicer(self) -> Servicer:
        """For the server."""
        register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        return Servicer(SERVICE, register, self)

    async def Generate(
        self, request: inference_pb2.InferenceServiceGenerateRequest, context: Context
    ) -> AsyncIterator[inference_pb2.InferenceServiceGenerateResponse]:
        current = current_request()
        # Not the request's id: that is the caller's to choose, and to repeat.
        request_id = new_request_id()
        with (
            _engine_errors(self._backlog),
            self._backlog.work() as work,
            self._steps.request(request_id),
        ):
            params = self._sampling_params(request.sampling)
            spans.describe(self._engine.model_info.name, params, request.num_resumed_tokens)
            chunks = self._engine.generate(
                request_id,
                request.token_ids,
                params,
                num_resumed_tokens=request.num_resumed_tokens,
                deadline=None if current is None else current.deadline,
                on_abandoned=_tell,
            )
            async with aclosing(chunks):
                accepted = False
                async for chunk in chunks:
                    if not accepted:
                        accepted = True
                        work.expect(self._num_expected(len(request.token_ids), params))
                    work.done(len(chunk.token_ids))
                    metrics.observe_chunk(chunk)
                    finish = chunk.finish
                    if finish is not None:
                        # Before anything is sent: who sends may find that its caller has gone.
                        metrics.observe(finish)
                        _tell(finish)
                    if chunk.prompt_logprobs:
                        yield _prompt_message(chunk)
                    failure = None if finish is None else finish.error
                    if failure is None:
                        yield _message(chunk, finish)
                        continue
                    if chunk.token_ids:
                        yield _message(chunk, None)
                    raise failure

    async def Embed(
        self, request: inference_pb2.InferenceServiceEmbedRequest, context: Context
    ) -> inference_pb2.InferenceServiceEmbedResponse:
        inputs = [list(each.ids) for each in request.inputs]
        annotate(num_inputs=len(inputs), prompt_tokens=sum(map(len, inputs)))
        with _engine_errors(self._backlog):
            vectors = await self._engine.embed(inputs)
        return inference_pb2.InferenceServiceEmbedResponse(
            embeddings=[common_pb2.Embedding(values=vector) for vector in vectors]
        )

    def _num_expected(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Tokens that a sequence may still take to generate."""
        room = self._engine.model_info.max_context - num_prompt_tokens
        return max(0, min(room, room if params.max_tokens is None else params.max_tokens))

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
        )

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

    def _sampling_params(self, message: common_pb2.SamplingParams) -> SamplingParams:
        """The request's values, else the model's own defaults, else the engine's."""
        defaults = self._engine.model_info.default_sampling
        return SamplingParams(**{**defaults, **sampling_values(message)})


def _prompt_message(chunk: SequenceOutput) -> inference_pb2.InferenceServiceGenerateResponse:
    logprobs = [token_logprob_to_proto(logprobs) for logprobs in chunk.prompt_logprobs]
    return inference_pb2.InferenceServiceGenerateResponse(
        chunk=inference_pb2.TokenChunk(prompt_logprobs=logprobs)
    )


def _message(
    chunk: SequenceOutput, finish: Finish | None
) -> inference_pb2.InferenceServiceGenerateResponse:
    """The tokens of a chunk, and the end behind them; the first chunk may hold none."""
    tokens = None
    if chunk.token_ids or finish is None:
        logprobs = [token_logprob_to_proto(logprobs) for logprobs in chunk.logprobs]
        tokens = inference_pb2.TokenChunk(token_ids=chunk.token_ids, logprobs=logprobs)
    return inference_pb2.InferenceServiceGenerateResponse(
        chunk=tokens, finish=None if finish is None else _finish(finish)
    )


def _finish(finish: Finish) -> inference_pb2.GenerationFinish:
    timings = finish.timings
    scheduled = timings.finish if timings.scheduled is None else timings.scheduled
    first_token = timings.finish if timings.first_token is None else timings.first_token
    return inference_pb2.GenerationFinish(
        reason=REASON_TO_PROTO[finish.reason],
        usage=usage_to_proto(
            Usage(finish.num_prompt_tokens, finish.num_completion_tokens, finish.num_cached_tokens)
        ),
        queue_seconds=scheduled - timings.arrival,
        prefill_seconds=first_token - scheduled,
        decode_seconds=timings.finish - first_token,
    )


def _tell(finish: Finish) -> None:
    """Tells span and access line how far a sequence came."""
    spans.record(finish)
    timings = finish.timings
    ttft = None if timings.first_token is None else timings.first_token - timings.arrival
    annotate(
        prompt_tokens=finish.num_prompt_tokens,
        completion_tokens=finish.num_completion_tokens,
        cached_tokens=finish.num_cached_tokens,
        ttft_seconds=ttft,
        finish_reason=finish.reason.value,
    )


@contextmanager
def _engine_errors(backlog: Backlog) -> Iterator[None]:
    """Turns what the engine raises into what the mesh raises; the one place that does."""
    try:
        yield
    except errors.EngineError as error:
        for cls, kind in _KIND_OF_ERROR:
            if isinstance(error, cls):
                retry_after = backlog.retry_after() if kind is ErrorKind.OVERLOADED else None
                param = getattr(error, "field", None)
                raise MeshError(kind, str(error), param=param, retry_after=retry_after) from error
        raise
