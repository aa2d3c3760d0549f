"""Streamed pieces of an answer: text, reasoning, tool calls and their log probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mesh.v1 import orchestrator_pb2


class DeltaLogprob(NamedTuple):
    """A token as text and bytes, its log probability, and the likeliest alternatives."""

    token: str
    """The text that it adds: the tokens' texts, joined, are the text. A token that completes a
    character adds all of it; one that the text omits, such as BOS, adds nothing."""
    token_bytes: bytes
    """Its bytes that are in the text."""
    logprob: float | None
    """None for the first token of an echoed prompt."""
    top: Sequence[DeltaLogprob] = ()


class ToolCallDelta(NamedTuple):
    """A piece of a tool call; only the first piece of a call has the id and the name."""

    number: int
    """Index of the call in the answer, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""


class Delta(NamedTuple):
    """A piece of text, reasoning or tool calls."""

    text: str
    num_tokens: int
    """Tokens that this piece covers."""
    logprobs: Sequence[DeltaLogprob] = ()
    """Of the tokens of the text; none of reasoning, tool calls, and the end of the generation."""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()


def set_delta(message: orchestrator_pb2.Delta, delta: Delta) -> None:
    """Convert to protobuf, into an empty message.

    A message with a message takes four times as long to make by constructors.
    """
    message.text = delta.text
    message.num_tokens = delta.num_tokens
    if delta.logprobs:
        message.logprobs.extend(_logprobs_to_proto(delta.logprobs))
    if delta.reasoning:
        message.reasoning = delta.reasoning
    for call in delta.tool_calls:
        message.tool_calls.add(
            index=call.number, id=call.id, name=call.name, arguments=call.arguments
        )


def _logprobs_to_proto(logprobs: Iterable[DeltaLogprob]) -> list[orchestrator_pb2.DeltaLogprob]:
    return [
        orchestrator_pb2.DeltaLogprob(
            token=each.token,
            token_bytes=each.token_bytes,
            logprob=each.logprob,
            top=_logprobs_to_proto(each.top),
        )
        for each in logprobs
    ]


def delta_from_proto(message: orchestrator_pb2.Delta) -> Delta:
    """Convert from protobuf."""
    logprobs = tuple(map(_logprob_from_proto, message.logprobs)) if message.logprobs else ()
    if not (message.reasoning or message.tool_calls):
        return Delta(message.text, message.num_tokens, logprobs)
    calls = tuple(
        ToolCallDelta(call.index, call.id, call.name, call.arguments) for call in message.tool_calls
    )
    return Delta(message.text, message.num_tokens, logprobs, message.reasoning, calls)


def _logprob_from_proto(message: orchestrator_pb2.DeltaLogprob) -> DeltaLogprob:
    top = tuple(map(_logprob_from_proto, message.top))
    value = message.logprob if message.HasField("logprob") else None
    return DeltaLogprob(message.token, message.token_bytes, value, top)
