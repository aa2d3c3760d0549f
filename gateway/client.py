"""The gateway's one upstream. Generated types are known here and nowhere else in the gateway."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.allowance import Spending
from gateway.generation import (
    ChatPrompt,
    Citation,
    Delta,
    Event,
    Finish,
    Generation,
    SamplingParams,
    Search,
    SearchResult,
    SearchResults,
    ServedModel,
    Started,
    TokenIds,
    TokenLogprob,
    Usage,
)
from mesh.channel import call_unary, open_stream
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

logger = logging.getLogger("gateway.client")

SERVICE = "mesh.v1.OrchestratorService"

_REASON: Mapping[int, str] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORT: "abort",
}


class Orchestrator:
    """Calls the orchestrator over a channel that the caller owns."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def generate(self, generation: Generation) -> AsyncGenerator[Event]:
        """Started, deltas, one Finish; raises MeshError. Close it to cancel the call."""
        last: Event | None = None
        request = generate_request(generation)
        spending = Spending()
        async with open_stream(self._stub.Generate, request) as responses:
            async for response in responses:
                last = _generate_event(response)
                _charge(spending, last)
                if isinstance(last, Finish):
                    responses.has_last()
                yield last
        _check_finished(last)

    async def search(self, search: Search) -> AsyncGenerator[Event]:
        """SearchResults, deltas, one Finish; raises MeshError. Close it to cancel the call."""
        last: Event | None = None
        request = summarize_request(search)
        spending = Spending()
        async with open_stream(self._stub.SummarizeStream, request) as responses:
            async for response in responses:
                last = _summarize_event(response)
                _charge(spending, last)
                if isinstance(last, Finish):
                    responses.has_last()
                yield last
        _check_finished(last)

    async def models(self) -> tuple[ServedModel, ...]:
        """The models that can be asked for; raises MeshError."""
        response = await call_unary(self._stub.ListModels, orchestrator_pb2.ListModelsRequest())
        return tuple(
            ServedModel(model.name, model.context_length, model.created_unix_seconds)
            for model in response.models
        )

    async def is_serving(self, timeout: float) -> bool:
        """Whether a token can be produced now; False also if that is not told in time."""
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        try:
            response = await call_unary(self._health.Check, request, timeout)
        except MeshError:
            return False
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def _charge(spending: Spending, event: Event) -> None:
    if isinstance(event, Delta):
        spending.add(event.num_tokens)
    elif isinstance(event, Started):
        spending.add(event.prompt_tokens)
    elif isinstance(event, Finish):
        spending.settle(event.usage.prompt_tokens + event.usage.completion_tokens)


def _check_finished(last: Event | None) -> None:
    if not isinstance(last, Finish):
        raise _broken("the stream ended without a finish")


def _broken(what: str) -> MeshError:
    logger.error("upstream broke the contract", extra={"error": what})
    return MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)


def summarize_request(search: Search) -> orchestrator_pb2.SummarizeRequest:
    """What is asked, on the wire."""
    return orchestrator_pb2.SummarizeRequest(
        query=search.query,
        num_results=search.num_results,
        max_tokens=search.max_tokens,
        model=search.model,
        safe_search=search.safe_search,
    )


def generate_request(generation: Generation) -> orchestrator_pb2.GenerateRequest:
    """What is asked, on the wire."""
    request = orchestrator_pb2.GenerateRequest(
        model=generation.model, sampling=_sampling(generation.sampling), stop=generation.stop
    )
    prompt = generation.prompt
    if isinstance(prompt, str):
        request.text = prompt
    elif isinstance(prompt, TokenIds):
        request.token_ids.ids.extend(prompt.ids)
        request.token_ids.SetInParent()
    else:
        request.chat.CopyFrom(_chat(prompt))
    return request


def _chat(prompt: ChatPrompt) -> common_pb2.ChatPrompt:
    return common_pb2.ChatPrompt(
        messages=[
            common_pb2.ChatMessage(
                role=message.role,
                content=message.content,
                name=message.name,
                tool_calls_json=message.tool_calls_json,
                tool_call_id=message.tool_call_id,
            )
            for message in prompt.messages
        ],
        tools_json=prompt.tools_json,
        continue_final_message=prompt.continue_final_message,
        template_kwargs_json=prompt.template_kwargs_json,
    )


def _sampling(params: SamplingParams) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        ignore_eos=params.ignore_eos,
        min_tokens=params.min_tokens,
        num_logprobs=params.num_logprobs,
    )


def _generate_event(response: orchestrator_pb2.GenerateResponse) -> Event:
    kind = response.WhichOneof("event")
    if kind == "delta":
        return _delta(response.delta)
    if kind == "started":
        return Started(response.started.model, response.started.prompt_tokens)
    if kind == "finish":
        return Finish(_reason(response.finish.reason), _usage(response.finish.usage))
    raise _broken("a message without an event")


def _summarize_event(response: orchestrator_pb2.SummarizeStreamResponse) -> Event:
    kind = response.WhichOneof("event")
    if kind == "delta":
        return _delta(response.delta)
    if kind == "results":
        return _results(response.results)
    if kind == "finish":
        finish = response.finish
        details = tuple(map(_citation, finish.citation_details))
        citations = tuple(finish.citations)
        return Finish(_reason(finish.reason), _usage(finish.usage), citations, details)
    raise _broken("a message without an event")


def _delta(delta: orchestrator_pb2.Delta) -> Delta:
    logprobs = tuple(map(_logprob, delta.logprobs)) if delta.logprobs else ()
    return Delta(delta.text, delta.num_tokens, logprobs)


def _logprob(logprob: orchestrator_pb2.DeltaLogprob) -> TokenLogprob:
    top = tuple(map(_logprob, logprob.top))
    return TokenLogprob(logprob.token, logprob.token_bytes, logprob.logprob, top)


def _results(results: orchestrator_pb2.SearchResults) -> SearchResults:
    return SearchResults(
        results.query,
        tuple(
            SearchResult(each.position, each.title, each.url, each.snippet, each.score)
            for each in results.results
        ),
    )


def _citation(detail: orchestrator_pb2.CitationDetail) -> Citation:
    sentence, span = detail.sentence, detail.span
    return Citation(
        detail.position or None,
        (sentence.begin, sentence.end),
        (span.begin, span.end) if detail.HasField("span") else None,
    )


def _usage(usage: common_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _reason(reason: int) -> str:
    if reason not in _REASON:
        raise _broken(f"finish reason {reason}")
    return _REASON[reason]
