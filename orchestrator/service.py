"""mesh.v1.OrchestratorService on the pipeline: protobuf in and out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc.aio

from mesh.errors import invalid
from mesh.lifecycle import SetReady
from mesh.server import Servicer
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from orchestrator.clients.tokenizer import ChatMessage, ChatPrompt
from orchestrator.generation import (
    Constraint,
    Delta,
    DeltaLogprob,
    FinishReason,
    Sampling,
    Started,
    Usage,
)
from orchestrator.grounding import Citation
from orchestrator.pipeline import Pipeline, Prompt
from orchestrator.readiness import Readiness
from orchestrator.replicas import Replicas
from orchestrator.requests import RequestState, RequestTable
from orchestrator.summary import Found, Question, SummaryFinish
from orchestrator.validation import DEFAULT_SUMMARY_TOKENS, check_num_results, check_query

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE = "mesh.v1.OrchestratorService"

_REASONS = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: common_pb2.FINISH_REASON_ABORT,
}
_STATES = {
    RequestState.RETRIEVING: orchestrator_pb2.REQUEST_STATE_RETRIEVING,
    RequestState.ENCODING: orchestrator_pb2.REQUEST_STATE_ENCODING,
    RequestState.WAITING: orchestrator_pb2.REQUEST_STATE_WAITING,
    RequestState.STREAMING: orchestrator_pb2.REQUEST_STATE_STREAMING,
}
_OPTIONAL_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "num_logprobs",
)


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """The RPCs, and when they can be served."""

    def __init__(
        self,
        pipeline: Pipeline,
        requests: RequestTable,
        replicas: Replicas,
        readiness: Readiness,
    ) -> None:
        self._pipeline = pipeline
        self._requests = requests
        self._replicas = replicas
        self._readiness = readiness
        self._first_seen: dict[str, int] = {}

    @property
    def servicers(self) -> Sequence[Servicer]:
        register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
        return [Servicer(SERVICE, register, self)]

    async def watch_ready(self, set_ready: SetReady) -> None:
        await self._readiness.watch(set_ready)

    async def Generate(
        self, request: orchestrator_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.GenerateResponse]:
        events = self._pipeline.generate(
            _prompt(request),
            model=request.model,
            sampling=_sampling(request.sampling),
            stop=list(request.stop),
        )
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    yield orchestrator_pb2.GenerateResponse(delta=_delta(event))
                elif isinstance(event, Started):
                    started = orchestrator_pb2.GenerateStarted(
                        model=event.model, prompt_tokens=event.prompt_tokens
                    )
                    yield orchestrator_pb2.GenerateResponse(started=started)
                else:
                    finish = orchestrator_pb2.GenerateFinish(
                        reason=_REASONS[event.reason], usage=_usage(event.usage)
                    )
                    yield orchestrator_pb2.GenerateResponse(finish=finish)

    async def SummarizeStream(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.SummarizeStreamResponse]:
        events = self._summarize(request, "SummarizeStream")
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    yield orchestrator_pb2.SummarizeStreamResponse(delta=_delta(event))
                elif isinstance(event, Found):
                    yield orchestrator_pb2.SummarizeStreamResponse(results=_results(event))
                else:
                    yield orchestrator_pb2.SummarizeStreamResponse(finish=_summary_finish(event))

    async def Summarize(
        self, request: orchestrator_pb2.SummarizeRequest, context: Context
    ) -> orchestrator_pb2.SummarizeResponse:
        response = orchestrator_pb2.SummarizeResponse()
        summary: list[str] = []
        events = self._summarize(request, "Summarize")
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta):
                    summary.append(event.text)
                elif isinstance(event, Found):
                    response.results.CopyFrom(_results(event))
                else:
                    response.finish.CopyFrom(_summary_finish(event))
        response.summary = "".join(summary)
        return response

    async def ListModels(
        self, request: orchestrator_pb2.ListModelsRequest, context: Context
    ) -> orchestrator_pb2.ListModelsResponse:
        models = self._replicas.models
        now = int(time.time())
        return orchestrator_pb2.ListModelsResponse(
            models=[
                orchestrator_pb2.Model(
                    name=name,
                    context_length=models[name].context_length,
                    created_unix_seconds=self._first_seen.setdefault(name, now),
                )
                for name in sorted(models)
            ]
        )

    async def ListRequests(
        self, request: orchestrator_pb2.ListRequestsRequest, context: Context
    ) -> orchestrator_pb2.ListRequestsResponse:
        return orchestrator_pb2.ListRequestsResponse(
            requests=[
                orchestrator_pb2.ActiveRequest(
                    request_id=active.request_id,
                    method=active.method,
                    model=active.model,
                    state=_STATES[active.state],
                    prompt_tokens=active.prompt_tokens,
                    completion_tokens=active.completion_tokens,
                    age_seconds=active.age_seconds,
                )
                for active in self._requests
            ]
        )

    async def CancelRequest(
        self, request: orchestrator_pb2.CancelRequestRequest, context: Context
    ) -> orchestrator_pb2.CancelRequestResponse:
        if not request.request_id:
            raise invalid("request_id", "request_id must be given")
        cancelled = self._requests.cancel(request.request_id)
        return orchestrator_pb2.CancelRequestResponse(cancelled=cancelled)

    def _summarize(
        self, request: orchestrator_pb2.SummarizeRequest, method: str
    ) -> AsyncGenerator[Found | Delta | SummaryFinish, None]:
        question = Question(
            query=check_query(request.query),
            num_results=check_num_results(request.num_results),
            max_tokens=request.max_tokens or DEFAULT_SUMMARY_TOKENS,
            model=request.model,
            safe_search=request.safe_search,
        )
        return self._pipeline.summarize(question, method=method)


def _prompt(request: orchestrator_pb2.GenerateRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "chat":
            return _chat(request.chat)
        case "text":
            return request.text
        case "token_ids":
            if not request.token_ids.ids:
                raise invalid("prompt", "prompt must have at least one token, given none")
            return list(request.token_ids.ids)
    raise invalid("prompt", "one of chat, text and token_ids must be given")


def _chat(chat: common_pb2.ChatPrompt) -> ChatPrompt:
    return ChatPrompt(
        messages=[
            ChatMessage(
                role=message.role,
                content=message.content,
                name=message.name,
                tool_calls_json=message.tool_calls_json,
                tool_call_id=message.tool_call_id,
            )
            for message in chat.messages
        ],
        tools_json=chat.tools_json,
        continue_final_message=chat.continue_final_message,
        template_kwargs_json=chat.template_kwargs_json,
    )


def _sampling(message: common_pb2.SamplingParams) -> Sampling:
    given: dict[str, Any] = {
        name: getattr(message, name)
        for name in _OPTIONAL_SAMPLING
        if message.HasField(name)  # type: ignore[arg-type]
    }
    return Sampling(
        **given,
        logit_bias=dict(message.logit_bias),
        stop_token_ids=list(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        min_tokens=message.min_tokens,
        constraint=_constraint(message.constraint) if message.HasField("constraint") else None,
    )


def _constraint(message: common_pb2.OutputConstraint) -> Constraint:
    form = message.WhichOneof("form")
    if form is None or (form == "json_object" and not message.json_object):
        raise invalid("constraint", "constraint must have one form, given none")
    return Constraint(form, "" if form == "json_object" else getattr(message, form))


def _delta(delta: Delta) -> orchestrator_pb2.Delta:
    return orchestrator_pb2.Delta(
        text=delta.text, num_tokens=delta.num_tokens, logprobs=_logprobs(delta.logprobs)
    )


def _logprobs(logprobs: Iterable[DeltaLogprob]) -> list[orchestrator_pb2.DeltaLogprob]:
    return [
        orchestrator_pb2.DeltaLogprob(
            token=each.token,
            token_bytes=each.token_bytes,
            logprob=each.logprob,
            top=_logprobs(each.top),
        )
        for each in logprobs
    ]


def _results(found: Found) -> orchestrator_pb2.SearchResults:
    return orchestrator_pb2.SearchResults(
        query=found.query,
        results=[orchestrator_pb2.SearchResult(**source._asdict()) for source in found.sources],
    )


def _summary_finish(finish: SummaryFinish) -> orchestrator_pb2.SummarizeFinish:
    return orchestrator_pb2.SummarizeFinish(
        reason=_REASONS[finish.reason],
        usage=_usage(finish.usage),
        citations=finish.citations,
        citation_details=map(_citation_detail, finish.details),
    )


def _citation_detail(citation: Citation) -> orchestrator_pb2.CitationDetail:
    return orchestrator_pb2.CitationDetail(
        position=citation.position,
        sentence=orchestrator_pb2.TextSpan(**citation.sentence._asdict()),
        span=citation.span and orchestrator_pb2.TextSpan(**citation.span._asdict()),
    )


def _usage(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )
