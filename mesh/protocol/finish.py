"""The first and the last event of a generation, and the reason why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from mesh.protocol.chat import ToolPrompt, tool_prompt_from_proto, tool_prompt_to_proto
from mesh.protocol.usage import Usage, usage_from_proto, usage_to_proto
from mesh.v1 import common_pb2, inference_pb2, orchestrator_pb2


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    """An end-of-sequence token, a stop token id or a stop string."""
    LENGTH = "length"
    """`max_tokens` was reached, or the context is full."""
    ABORT = "abort"
    """Ended from outside: by its consumer, its deadline, an operator or a drain."""
    ERROR = "error"
    """The engine failed. Exists inside the engine only: between services it is a gRPC status."""


class GenerationStarted(NamedTuple):
    """The request is accepted; generation begins."""

    model: str
    prompt_tokens: int
    tool_prompt: ToolPrompt = ToolPrompt.NONE


@dataclass(frozen=True, slots=True)
class GenerationFinish:
    """The end of a generation."""

    reason: FinishReason
    usage: Usage
    stop_string: str = ""
    """The stop string that ended the text; empty if none did."""
    num_resumptions: int = 0
    """Times that another engine continued the generation after its first tokens."""
    failover_causes: Sequence[str] = ()
    """Why each engine was lost whose request another one was asked to continue, for traces."""


REASON_TO_PROTO = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: common_pb2.FINISH_REASON_ABORT,
}
_REASON_FROM_PROTO: dict[int, FinishReason] = {
    number: reason for reason, number in REASON_TO_PROTO.items()
}


def reason_from_proto(number: int) -> FinishReason:
    """Convert from protobuf. Raises ValueError for a number that must not be sent."""
    reason = _REASON_FROM_PROTO.get(number)
    if reason is None:
        raise ValueError(f"finish reason {number}")
    return reason


def started_to_proto(started: GenerationStarted) -> orchestrator_pb2.GenerateStarted:
    """Convert to protobuf."""
    return orchestrator_pb2.GenerateStarted(
        model=started.model,
        prompt_tokens=started.prompt_tokens,
        tool_prompt=tool_prompt_to_proto(started.tool_prompt),
    )


def started_from_proto(message: orchestrator_pb2.GenerateStarted) -> GenerationStarted:
    """Convert from protobuf."""
    return GenerationStarted(
        message.model, message.prompt_tokens, tool_prompt_from_proto(message.tool_prompt)
    )


def finish_to_proto(finish: GenerationFinish) -> orchestrator_pb2.GenerateFinish:
    """Convert to protobuf."""
    return orchestrator_pb2.GenerateFinish(
        reason=REASON_TO_PROTO[finish.reason],
        usage=usage_to_proto(finish.usage),
        stop_string=finish.stop_string,
        num_resumptions=finish.num_resumptions,
        num_failovers=len(finish.failover_causes),
        failover_causes=finish.failover_causes,
    )


def finish_from_proto(
    message: orchestrator_pb2.GenerateFinish | inference_pb2.GenerationFinish,
) -> GenerationFinish:
    """Convert from protobuf. Raises ValueError for an unknown reason."""
    return GenerationFinish(reason_from_proto(message.reason), usage_from_proto(message.usage))
