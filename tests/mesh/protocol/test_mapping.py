"""The shared values survive protobuf."""

from __future__ import annotations

import pytest

from mesh.protocol.chat import (
    ChatMessage,
    ChatPrompt,
    ToolChoice,
    ToolPrompt,
    chat_from_proto,
    chat_to_proto,
    tool_choice_from_proto,
    tool_choice_to_proto,
)
from mesh.protocol.deltas import (
    Delta,
    DeltaLogprob,
    ToolCallDelta,
    delta_from_proto,
    set_delta,
)
from mesh.protocol.finish import (
    REASON_TO_PROTO,
    FinishReason,
    GenerationFinish,
    GenerationStarted,
    finish_from_proto,
    finish_to_proto,
    reason_from_proto,
    started_from_proto,
    started_to_proto,
)
from mesh.protocol.logprobs import TokenLogprob, token_logprob_from_proto, token_logprob_to_proto
from mesh.protocol.tokens import TokenChunk, token_chunk_from_proto
from mesh.protocol.usage import Usage
from mesh.v1 import common_pb2, inference_pb2, orchestrator_pb2

CHAT = ChatPrompt(
    messages=(
        ChatMessage(role="user", content="hi", name="ada"),
        ChatMessage(
            role="assistant", content="", tool_calls_json="[]", reasoning_content="because"
        ),
        ChatMessage(role="tool", content="42", tool_call_id="call-1"),
    ),
    tools_json="[{}]",
    continue_final_message=True,
    template_kwargs_json="{}",
)


def test_a_conversation_survives_protobuf() -> None:
    """Every field of every message."""
    assert chat_from_proto(chat_to_proto(CHAT)) == CHAT


@pytest.mark.parametrize(
    "choice", [ToolChoice(), ToolChoice(required=True, single=True), ToolChoice(name="add")]
)
def test_a_tool_choice_survives_protobuf(choice: ToolChoice) -> None:
    """Every field."""
    assert tool_choice_from_proto(tool_choice_to_proto(choice)) == choice


@pytest.mark.parametrize(
    "delta",
    [
        Delta("text", 2),
        Delta("a", 1, (DeltaLogprob("a", b"a", -0.5, (DeltaLogprob("b", b"b", -1.5),)),)),
        Delta("a", 1, (DeltaLogprob("a", b"a", None),)),
        Delta("", 3, reasoning="because"),
        Delta("", 3, tool_calls=(ToolCallDelta(1, "id", "add", '{"a": 1}'), ToolCallDelta(1))),
    ],
)
def test_a_delta_survives_protobuf(delta: Delta) -> None:
    """Text, log probabilities, reasoning and tool calls; an absent log probability is None."""
    message = orchestrator_pb2.Delta()
    set_delta(message, delta)
    assert delta_from_proto(message) == delta


def test_start_and_finish_survive_protobuf() -> None:
    """Every field of both."""
    for tool_prompt in ToolPrompt:
        started = GenerationStarted("model", 3, tool_prompt)
        assert started_from_proto(started_to_proto(started)) == started
    for reason in REASON_TO_PROTO:
        finish = GenerationFinish(reason, Usage(1, 2, 3))
        assert finish_from_proto(finish_to_proto(finish)) == finish


def test_finish_reasons_agree_with_the_contract() -> None:
    """Each reason of the contract has a value; an error is a gRPC status, so it has no number."""
    numbers = set(common_pb2.FinishReason.values()) - {common_pb2.FINISH_REASON_UNSPECIFIED}
    assert set(REASON_TO_PROTO.values()) == numbers
    assert set(FinishReason) - set(REASON_TO_PROTO) == {FinishReason.ERROR}
    with pytest.raises(ValueError, match="finish reason 0"):
        reason_from_proto(common_pb2.FINISH_REASON_UNSPECIFIED)


def test_token_chunks_are_read_from_protobuf() -> None:
    """Ids, log probabilities of tokens and prompt, and the finish."""
    logprob = TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.5)))
    message = token_logprob_to_proto(logprob)
    assert token_logprob_from_proto(message) == logprob
    chunk = inference_pb2.TokenChunk(
        token_ids=[5], logprobs=[message], prompt_logprobs=[message, message]
    )
    finish = inference_pb2.GenerationFinish(
        reason=common_pb2.FINISH_REASON_LENGTH,
        usage=common_pb2.Usage(prompt_tokens=1, completion_tokens=2, cached_tokens=1),
    )
    read = token_chunk_from_proto(
        inference_pb2.InferenceServiceGenerateResponse(chunk=chunk, finish=finish)
    )
    end = GenerationFinish(FinishReason.LENGTH, Usage(1, 2, 1))
    expected = TokenChunk([5], [logprob], [logprob, logprob], end)
    listed = read._replace(
        token_ids=list(read.token_ids), prompt_logprobs=list(read.prompt_logprobs)
    )
    assert listed == expected
    assert read.prompt_logprobs[1:] == [logprob]
    empty = token_chunk_from_proto(inference_pb2.InferenceServiceGenerateResponse(chunk={}))
    assert (list(empty.token_ids), empty.logprobs, empty.finish) == ([], (), None)
