"""Converts the orchestrator's values to OpenAI's response format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeAlias

from gateway.http.errors import error_body
from gateway.streaming.sse import data_frame
from mesh.context import current_request
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.deltas import DeltaLogprob, ToolCallDelta
from mesh.protocol.finish import FinishReason, GenerationFinish

LEAST_LOGPROB = -9999.0
"""OpenAI's value for the log probability of an impossible token: JSON has no infinity."""

RESUMED = "x-weir-resumed"
"""Field with the number of times that another engine continued the output."""

Choice: TypeAlias = dict[str, object]


def error_frame(error: MeshError) -> bytes:
    """The last event of a stream that failed; no `[DONE]` follows."""
    return data_frame(error_body(error))


def check_not_aborted(finish: GenerationFinish) -> None:
    """Raise MeshError for an aborted generation: OpenAI has no finish reason for it."""
    if finish.reason is FinishReason.ABORT:
        raise MeshError(ErrorKind.CANCELLED, "the request was ended by an operator")


def resumed(finish: GenerationFinish) -> dict[str, object]:
    """The field of a final event that reports continuations by other engines; usually none."""
    return {RESUMED: finish.num_resumptions} if finish.num_resumptions else {}


def response_id(prefix: str) -> str:
    """The id of the current request's response."""
    request = current_request()
    return f"{prefix}-{'' if request is None else request.request_id}"


def head(prefix: str, kind: str, model: str) -> dict[str, object]:
    """The fields before the choices, in a response and in each chunk."""
    return {
        "id": response_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def chat_logprobs(logprobs: Sequence[DeltaLogprob]) -> dict[str, object] | None:
    """The logprobs of a chat choice; None if there are none."""
    if not logprobs:
        return None
    return {"content": [_chat_logprob(each, with_top=True) for each in logprobs], "refusal": None}


def _chat_logprob(each: DeltaLogprob, *, with_top: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "token": each.token,
        "logprob": _finite(each.logprob),
        "bytes": list(each.token_bytes),
    }
    if with_top:
        fields["top_logprobs"] = [_chat_logprob(top, with_top=False) for top in each.top]
    return fields


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)


class TextLogprobs:
    """The logprobs of a text completion; text offsets continue from chunk to chunk."""

    def __init__(self) -> None:
        self._offset = 0

    def of(self, logprobs: Sequence[DeltaLogprob]) -> dict[str, object] | None:
        """Format the next tokens; None if there are none."""
        if not logprobs:
            return None
        offsets = []
        for each in logprobs:
            offsets.append(self._offset)
            self._offset += len(each.token)
        return {
            "tokens": [_token_name(each) for each in logprobs],
            "token_logprobs": [_finite(each.logprob) for each in logprobs],
            "top_logprobs": [
                None
                if each.logprob is None
                else {_token_name(top): _finite(top.logprob) for top in each.top}
                for each in logprobs
            ],
            "text_offset": offsets,
        }


def _token_name(each: DeltaLogprob) -> str:
    """The token's text, or its bytes if they are not valid UTF-8, which keeps tokens distinct."""
    try:
        each.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in each.token_bytes)
    return each.token


class ToolCalls:
    """The tool calls of one response, assembled from their deltas."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, str, list[str]]] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, deltas: Sequence[ToolCallDelta]) -> None:
        """Add deltas."""
        for delta in deltas:
            if delta.name:
                self._calls.append((delta.id, delta.name, []))
            self._calls[delta.number][2].append(delta.arguments)

    def whole(self) -> list[dict[str, object]]:
        """The calls in the format of a message."""
        return [
            {
                "id": id,
                "type": "function",
                "function": {"name": name, "arguments": "".join(arguments)},
            }
            for id, name, arguments in self._calls
        ]


def tool_call_delta(delta: ToolCallDelta) -> dict[str, object]:
    """A tool-call delta in the format of a chunk."""
    if not delta.name:
        return {"index": delta.number, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.number,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }
