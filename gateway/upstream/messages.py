"""Translates between the wire format and the gateway's own types; for client.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from gateway.upstream.generation import (
    ChatPrompt,
    Citation,
    Constraint,
    Delta,
    Embedded,
    Event,
    Finish,
    Generation,
    SamplingParams,
    Search,
    SearchResult,
    SearchResults,
    Started,
    TokenIds,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.v1 import common_pb2, orchestrator_pb2

logger = logging.getLogger("gateway.upstream.client")

_REASON: Mapping[int, str] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_ABORT: "abort",
}


def broken(what: str) -> MeshError:
    """The error for a client where the orchestrator did what it must not."""
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
        model=generation.model,
        sampling=_sampling(generation.sampling),
        stop=generation.stop,
        echo=generation.echo,
    )
    if generation.tool_choice is not None:
        request.tool_choice.CopyFrom(
            orchestrator_pb2.ToolChoice(**generation.tool_choice._asdict())
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
        num_prompt_logprobs=params.num_prompt_logprobs,
        constraint=_constraint(params.constraint),
    )


def _constraint(constraint: Constraint | None) -> common_pb2.OutputConstraint | None:
    if constraint is None:
        return None
    if constraint.form == "json_object":
        return common_pb2.OutputConstraint(json_object=True)
    return common_pb2.OutputConstraint(json_schema=constraint.text)


def generate_events(response: orchestrator_pb2.GenerateResponse) -> list[Event]:
    """The events in a message, at least one, in order. Raises MeshError."""
    events: list[Event] = []
    if response.HasField("started"):
        events.append(Started(response.started.model, response.started.prompt_tokens))
    if response.HasField("delta"):
        events.append(_delta(response.delta))
    if response.HasField("finish"):
        finish = response.finish
        events.append(Finish(_reason(finish.reason), _usage(finish.usage)))
    if not events:
        raise broken("a message without an event")
    return events


def summarize_events(response: orchestrator_pb2.SummarizeStreamResponse) -> list[Event]:
    """The event in a message. Raises MeshError."""
    kind = response.WhichOneof("event")
    if kind == "delta":
        return [_delta(response.delta)]
    if kind == "results":
        return [_results(response.results)]
    if kind == "finish":
        finish = response.finish
        details = tuple(map(_citation, finish.citation_details))
        citations = tuple(finish.citations)
        return [Finish(_reason(finish.reason), _usage(finish.usage), citations, details)]
    raise broken("a message without an event")


def _delta(delta: orchestrator_pb2.Delta) -> Delta:
    logprobs = tuple(map(_logprob, delta.logprobs)) if delta.logprobs else ()
    if not (delta.reasoning or delta.tool_calls):
        return Delta(delta.text, delta.num_tokens, logprobs)
    calls = tuple(
        ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in delta.tool_calls
    )
    return Delta(delta.text, delta.num_tokens, logprobs, delta.reasoning, calls)


def _logprob(logprob: orchestrator_pb2.DeltaLogprob) -> TokenLogprob:
    top = tuple(map(_logprob, logprob.top))
    value = logprob.logprob if logprob.HasField("logprob") else None
    return TokenLogprob(logprob.token, logprob.token_bytes, value, top)


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
        raise broken(f"finish reason {reason}")
    return _REASON[reason]


def embed_request(inputs: Sequence[str | TokenIds], model: str) -> orchestrator_pb2.EmbedRequest:
    """What is asked, on the wire."""
    request = orchestrator_pb2.EmbedRequest(model=model)
    for each in inputs:
        added = request.inputs.add()
        if isinstance(each, str):
            added.text = each
        else:
            added.token_ids.ids.extend(each.ids)
    return request


def embedded(response: orchestrator_pb2.EmbedResponse) -> Embedded:
    """The vectors in a message."""
    vectors = tuple(embedding.values for embedding in response.embeddings)
    return Embedded(response.model, vectors, response.prompt_tokens)
