"""Translates between the wire format and what the pipeline speaks of; for service.py."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.errors import invalid
from mesh.protocol.optional_fields import optional_values
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.clients.tokenizer import ChatMessage, ChatPrompt
from orchestrator.embedding import Input
from orchestrator.generation import (
    Constraint,
    Delta,
    DeltaLogprob,
    Finish,
    FinishReason,
    Progress,
    Sampling,
    Started,
    ToolChoice,
    Usage,
)
from orchestrator.text.preparation import Prompt

REASONS = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: common_pb2.FINISH_REASON_ABORT,
}


def prompt_of(request: orchestrator_pb2.GenerateRequest) -> Prompt:
    """What to continue. Raises MeshError if nothing is given."""
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


def inputs_of(request: orchestrator_pb2.EmbedRequest) -> list[Input]:
    """What to embed. Raises MeshError for an input without any."""
    inputs: list[Input] = []
    for number, each in enumerate(request.inputs):
        kind = each.WhichOneof("input")
        if kind is None:
            raise invalid("input", f"input[{number}] must be text or token_ids, given neither")
        inputs.append(each.text if kind == "text" else list(each.token_ids.ids))
    return inputs


def tool_choice_of(message: orchestrator_pb2.ToolChoice) -> ToolChoice:
    """Which tools are called."""
    return ToolChoice(message.required, message.name, message.single)


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


def sampling_of(message: common_pb2.SamplingParams) -> Sampling:
    """How to draw; unchecked but for the constraint's form."""
    return Sampling(
        **optional_values(message),
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


def progress(progress: Progress) -> orchestrator_pb2.GenerateResponse:
    """All that became known of a generation at once."""
    started, told, finish = progress
    return orchestrator_pb2.GenerateResponse(
        started=None if started is None else _started(started),
        delta=None if told is None else delta(told),
        finish=None if finish is None else _finish(finish),
    )


def _started(started: Started) -> orchestrator_pb2.GenerateStarted:
    return orchestrator_pb2.GenerateStarted(
        model=started.model, prompt_tokens=started.prompt_tokens
    )


def _finish(finish: Finish) -> orchestrator_pb2.GenerateFinish:
    return orchestrator_pb2.GenerateFinish(reason=REASONS[finish.reason], usage=usage(finish.usage))


def delta(delta: Delta) -> orchestrator_pb2.Delta:
    """A piece of what is generated."""
    message = orchestrator_pb2.Delta(
        text=delta.text,
        num_tokens=delta.num_tokens,
        logprobs=_logprobs(delta.logprobs),
        reasoning=delta.reasoning,
    )
    for call in delta.tool_calls:
        message.tool_calls.add(
            index=call.number, id=call.id, name=call.name, arguments=call.arguments
        )
    return message


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


def usage(usage: Usage) -> common_pb2.Usage:
    """Tokens of one request."""
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )
