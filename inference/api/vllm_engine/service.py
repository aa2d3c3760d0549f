"""vllm.grpc.engine.VllmEngine: translates between smg-grpc-proto's messages and an engine."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
import grpc.aio
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2, vllm_engine_pb2_grpc

from inference.api import spans
from inference.api.engine_errors import engine_errors
from inference.api.request_account import RequestAccount, num_expected_tokens
from inference.api.spans import StepSpans
from inference.api.vllm_engine import kv_events, requests
from inference.api.vllm_engine.calls import Call, Calls
from inference.api.vllm_engine.merge import merged
from inference.api.vllm_engine.model_files import ModelFiles, TextModel
from inference.api.vllm_engine.responses import ChoiceResponses, TokenDelta
from inference.api.vllm_engine.stop_strings import StopFinder
from inference.engine.interface import EngineClient
from inference.sampling.sampling_params import SamplingParams
from mesh.context import annotate, current_request, new_request_id
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.process.backlog import Backlog, Work
from mesh.protocol.finish import FinishReason
from mesh.protocol.model_kind import ModelKind
from mesh.rpc.server import Servicer

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "vllm.grpc.engine.VllmEngine"
SERVER_TYPE = "weir"
ARCHIVE_PART_BYTES = 64 * 1024
MAX_SUBSCRIBERS = 64
"""Each costs time of the event loop with every step that changes the prefix cache."""
SUBSCRIBE_AGAIN_SECONDS = 10.0
SHORT_CHARACTERS = 2000
"""A text of this length is encoded faster than a thread is switched."""


class _Prompt(NamedTuple):
    """A request that has been translated."""

    token_ids: Sequence[int]
    params: SamplingParams
    stop: requests.StopRule | None
    text_model: TextModel | None


class VllmEngineService(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Serves one engine, which must be started."""

    def __init__(
        self,
        engine: EngineClient,
        files: ModelFiles,
        steps: StepSpans | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        """The caller owns `engine`. Services of one engine share `steps` and `backlog`."""
        self._engine = engine
        self._files = files
        self._steps = steps or StepSpans()
        self._backlog = backlog or Backlog()
        self._calls = Calls(engine)
        self._started = time.monotonic()
        self._last_request = 0.0
        self._num_subscribers = 0

    @property
    def servicer(self) -> Servicer:
        """The service as `mesh.rpc.server` takes it."""
        register = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server
        return Servicer(SERVICE, register, self)

    async def Generate(
        self, request: vllm_engine_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
        """Streams chunks and one `complete` per choice, or without `stream` the latter only."""
        self._last_request = time.time()
        annotate(engine_request_id=request.request_id[:200] or None)
        message = request.sampling_params
        try:
            with engine_errors(self._backlog), self._backlog.work() as work:
                requests.check_supported(request)
                num_choices = requests.num_choices(message)
                prompt = await self._prompt(request)
                spans.describe(self._engine.model_info.name, prompt.params, 0)
                with self._calls.running(request.request_id) as call:
                    choices = [
                        self._choice(index, prompt, request.stream, call, work)
                        for index in range(num_choices)
                    ]
                    async with aclosing(merged(choices) if choices[1:] else choices[0]) as messages:
                        async for response in messages:
                            yield response
        except MeshError as error:
            raise requests.in_callers_words(error, message) from error

    async def _prompt(self, request: vllm_engine_pb2.GenerateRequest) -> _Prompt:
        message = request.sampling_params
        params = requests.sampling_params(message, requests.output_constraint(message))
        stop = requests.stop_rule(message)
        text_model = None
        if stop is not None:
            text_model = await self._files.text_model("sampling_params.stop")
        token_ids: Sequence[int] = request.tokenized.input_ids
        if request.WhichOneof("input") == "text":
            token_ids = await self._encode(request.text)
        if message.HasField("truncate_prompt_tokens"):
            max_context = self._engine.model_info.max_context
            token_ids = requests.truncated_prompt(message, list(token_ids), max_context)
        return _Prompt(token_ids, params, stop, text_model)

    async def _encode(self, text: str) -> list[int]:
        """With special tokens, as vLLM encodes a text."""
        # No token has more characters than this on average, so the text cannot fit.
        most = 64 * self._engine.model_info.max_context
        if len(text) > most:
            raise invalid("text", f"text must be at most {most} characters, given {len(text)}")
        tokenizer = (await self._files.text_model("text")).tokenizer
        if len(text) <= SHORT_CHARACTERS:
            encoding = tokenizer.encode(text)
        else:
            # A batch releases the interpreter lock, which `encode` holds until its end.
            (encoding,) = await asyncio.to_thread(tokenizer.encode_batch_fast, [text])
        token_ids: list[int] = encoding.ids
        return token_ids

    async def _choice(
        self, index: int, prompt: _Prompt, is_streamed: bool, call: Call, work: Work
    ) -> AsyncGenerator[vllm_engine_pb2.GenerateResponse, None]:
        """The messages of one sequence."""
        params = prompt.params
        if index and params.seed is not None:
            params = replace(params, seed=params.seed + index)  # as vLLM seeds further choices
        num_expected = num_expected_tokens(self._engine, len(prompt.token_ids), params)
        account = RequestAccount(work, num_expected)
        responses = ChoiceResponses(
            index=index,
            prompt_token_ids=prompt.token_ids,
            is_streamed=is_streamed,
            stop_token_ids=params.stop_token_ids,
        )
        finder = _stop_finder(prompt)
        current = current_request()
        sequence_id = new_request_id()
        with self._steps.request(sequence_id):
            outputs = self._engine.generate(
                sequence_id,
                prompt.token_ids,
                params,
                deadline=None if current is None else current.deadline,
                on_abandoned=account.abandoned,
            )
            is_accepted = False
            async with aclosing(outputs):
                async for output in outputs:
                    account.record(output)
                    if not is_accepted:
                        is_accepted = True
                        self._calls.accepted(call, sequence_id)
                    if output.prompt_logprobs:
                        responses.take_prompt_logprobs(output.prompt_logprobs)
                    delta = TokenDelta(token_ids=output.token_ids, logprobs=output.logprobs)
                    if finder is not None:
                        self._cut(finder, delta, sequence_id)
                    if delta.token_ids and (message := responses.chunk(delta)) is not None:
                        yield message
                    finish = output.finish
                    if finish is None:
                        continue
                    if finish.error is not None:
                        raise finish.error
                    matched = "" if finder is None else finder.matched
                    yield responses.complete(delta, finish, matched)

    def _cut(self, finder: StopFinder, delta: TokenDelta, sequence_id: str) -> None:
        """Remove what follows a stop string, and end the sequence at the first one."""
        if finder.matched:
            delta.cut(0)
            return
        delta.cut(finder.push(delta.token_ids))
        if finder.matched:
            self._engine.end(sequence_id, FinishReason.STOP)

    async def Embed(
        self, request: vllm_engine_pb2.EmbedRequest, context: Context
    ) -> vllm_engine_pb2.EmbedResponse:
        """The vector of one input."""
        token_ids = list(request.tokenized.input_ids)
        annotate(prompt_tokens=len(token_ids))
        try:
            with engine_errors(self._backlog), self._backlog.work() as work:
                work.expect(len(token_ids))
                (vector,) = await self._engine.embed([token_ids])
                work.done(len(token_ids))
        except MeshError as error:
            raise requests.in_callers_words(error, request) from error
        return vllm_engine_pb2.EmbedResponse(
            embedding=vector, prompt_tokens=len(token_ids), embedding_dim=len(vector)
        )

    async def HealthCheck(
        self, request: vllm_engine_pb2.HealthCheckRequest, context: Context
    ) -> vllm_engine_pb2.HealthCheckResponse:
        """Whether the engine can produce tokens."""
        healthy = self._engine.healthy
        return vllm_engine_pb2.HealthCheckResponse(
            healthy=healthy, message="" if healthy else "the engine does not produce tokens"
        )

    async def Abort(
        self, request: vllm_engine_pb2.AbortRequest, context: Context
    ) -> vllm_engine_pb2.AbortResponse:
        """Ends calls by their request ids: their streams end with the reason abort."""
        for request_id in request.request_ids:
            self._calls.abort(request_id)
        return vllm_engine_pb2.AbortResponse()

    async def GetModelInfo(
        self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetModelInfoResponse:
        """The model, and where its tokenizer is on this host."""
        info, files = self._engine.model_info, self._files
        folder = "" if files.folder is None else str(files.folder)
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=folder or info.name,
            is_generation=info.kind is ModelKind.GENERATION,
            max_context_length=info.max_context,
            vocab_size=info.vocab_size,
            served_model_name=info.name,
            tokenizer_path=folder if files.has_tokenizer else "",
            model_type=str(files.config.get("model_type", "")),
            architectures=[info.architecture],
            eos_token_ids=info.eos_token_ids,
            pad_token_id=files.token_id("pad_token_id"),
            bos_token_id=files.token_id("bos_token_id"),
            max_req_input_len=info.max_context - 1,
            default_sampling_params_json=_json(dict(info.default_sampling)),
        )

    async def GetServerInfo(
        self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context
    ) -> vllm_engine_pb2.GetServerInfoResponse:
        """The limits of the engine."""
        load, info = self._engine.load(), self._engine.model_info
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=load.num_running + load.num_waiting,
            last_receive_timestamp=self._last_request,
            uptime_seconds=time.monotonic() - self._started,
            server_type=SERVER_TYPE,
            data_parallel_size=1,
            block_size=load.block_size,
            model_dtype=info.dtype,
            max_num_seqs=load.max_num_seqs,
            constrained_decoding_start="first_token",
        )

    async def GetLoads(
        self, request: vllm_engine_pb2.GetLoadsRequest, context: Context
    ) -> vllm_engine_pb2.GetLoadsResponse:
        """The load of the only rank."""
        if request.HasField("dp_rank") and request.dp_rank != 0:
            raise invalid("dp_rank", f"dp_rank must be 0, the only rank, given {request.dp_rank}")
        load = self._engine.load()
        scheduler = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=load.num_running,
            num_waiting_reqs=load.num_waiting,
            num_total_reqs=load.num_running + load.num_waiting,
            num_used_tokens=round(load.kv_usage * load.kv_capacity_tokens),
            max_total_num_tokens=load.kv_capacity_tokens,
            token_usage=load.kv_usage,
            gen_throughput=self._throughput,
            utilization=load.num_running / load.max_num_seqs,
            max_running_requests=load.max_num_seqs,
        )
        return vllm_engine_pb2.GetLoadsResponse(
            timestamp=datetime.now(UTC).isoformat(), dp_rank_count=1, loads=[scheduler]
        )

    @property
    def _throughput(self) -> float:
        """Generated tokens per second; 0 while nothing runs."""
        return self._backlog.tokens_per_second or 0.0 if self._backlog.num_running else 0.0

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Context
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        """Streams a zip file; the last part has its SHA-256."""
        archive = await self._files.archive()
        for start in range(0, len(archive.data), ARCHIVE_PART_BYTES):
            data = archive.data[start : start + ARCHIVE_PART_BYTES]
            is_last = start + len(data) == len(archive.data)
            yield common_pb2.GetTokenizerChunk(data=data, sha256=archive.sha256 if is_last else "")

    async def SubscribeKvEvents(
        self, request: common_pb2.SubscribeKvEventsRequest, context: Context
    ) -> AsyncIterator[common_pb2.KvEventBatch]:
        """Streams the changes of the prefix cache after a position, or after its state."""
        feed = self._engine.block_feed()
        if feed is None:
            raise MeshError(ErrorKind.UNIMPLEMENTED, "the engine has no prefix cache")
        position = request.start_sequence_number
        if position and feed.since(position) is None:
            _end_with(context, grpc.StatusCode.OUT_OF_RANGE)
            return
        if self._num_subscribers >= MAX_SUBSCRIBERS:
            limit = f"at most {MAX_SUBSCRIBERS} callers may subscribe to the changes of the cache"
            raise MeshError(ErrorKind.OVERLOADED, limit, retry_after=SUBSCRIBE_AGAIN_SECONDS)
        self._num_subscribers += 1
        try:
            async with aclosing(kv_events.batches(feed, position)) as batches:  # type: ignore[type-var]
                async for batch in batches:
                    yield batch
        except kv_events.PositionLostError:
            _end_with(context, grpc.StatusCode.DATA_LOSS)
        finally:
            self._num_subscribers -= 1

    async def FlushCache(self, request: common_pb2.FlushCacheRequest, context: Context) -> NoReturn:
        """Not implemented."""
        raise _unimplemented("FlushCache")

    async def StartProfile(
        self, request: common_pb2.StartProfileRequest, context: Context
    ) -> NoReturn:
        """Not implemented."""
        raise _unimplemented("StartProfile")

    async def StopProfile(
        self, request: common_pb2.StopProfileRequest, context: Context
    ) -> NoReturn:
        """Not implemented."""
        raise _unimplemented("StopProfile")


def _stop_finder(prompt: _Prompt) -> StopFinder | None:
    if prompt.stop is None or prompt.text_model is None:
        return None
    tokenizer, decoder = prompt.text_model
    kept: list[str] = []
    if not prompt.stop.skips_special_tokens:
        kept = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    return StopFinder(decoder.stream(kept), prompt.stop)


def _end_with(context: Context, code: grpc.StatusCode) -> None:
    """End the stream with the status by which subscribers start again from the state."""
    context.set_code(code)
    context.set_details("the position is not in the history; subscribe from 0")


def _unimplemented(method: str) -> MeshError:
    return MeshError(ErrorKind.UNIMPLEMENTED, f"{method} is not implemented")


def _json(values: dict[str, float]) -> str:
    return json.dumps(values, separators=(",", ":")) if values else ""
