"""OpenAI's words for what the orchestrator tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

from gateway.errors import error_body
from gateway.generation import ABORT, Finish, TokenLogprob, Usage
from gateway.json_text import encode_line
from gateway.sse import DONE, data_frame
from mesh.context import current_request
from mesh.errors import ErrorKind, MeshError

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for an impossible token, as JSON has no infinity."""

Choice: TypeAlias = dict[str, object]

# Stands where the text of a delta will; a control character is in no model's name.
_MARK = "\0text\0"


def error_frame(error: MeshError) -> bytes:
    """The last event of a stream that failed; no `[DONE]` follows."""
    return data_frame(error_body(error))


def usage(usage: Usage) -> dict[str, object]:
    """The usage object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def check_not_aborted(finish: Finish) -> None:
    """Raises MeshError for a generation that somebody ended: OpenAI's wire has no word for it."""
    if finish.reason == ABORT:
        raise MeshError(ErrorKind.CANCELLED, "the request was ended by an operator")


def head(prefix: str, kind: str, model: str) -> dict[str, object]:
    """The fields that stand before the choices, in an answer and in each of its chunks."""
    request = current_request()
    request_id = "" if request is None else request.request_id
    return {
        "id": f"{prefix}-{request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def chat_logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, object] | None:
    """The logprobs of a chat choice; None without any."""
    if not logprobs:
        return None
    return {"content": [_chat_logprob(each, with_top=True) for each in logprobs], "refusal": None}


def _chat_logprob(each: TokenLogprob, *, with_top: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "token": each.token,
        "logprob": max(each.logprob, LEAST_LOGPROB),
        "bytes": list(each.token_bytes),
    }
    if with_top:
        fields["top_logprobs"] = [_chat_logprob(top, with_top=False) for top in each.top]
    return fields


class TextLogprobs:
    """The logprobs of a completion, whose offsets go on from chunk to chunk."""

    def __init__(self) -> None:
        self._offset = 0

    def of(self, logprobs: tuple[TokenLogprob, ...]) -> dict[str, object] | None:
        """The next tokens; None without any."""
        if not logprobs:
            return None
        offsets = []
        for each in logprobs:
            offsets.append(self._offset)
            self._offset += len(each.token)
        return {
            "tokens": [each.token for each in logprobs],
            "token_logprobs": [max(each.logprob, LEAST_LOGPROB) for each in logprobs],
            "top_logprobs": [
                {top.token: max(top.logprob, LEAST_LOGPROB) for top in each.top}
                for each in logprobs
            ],
            "text_offset": offsets,
        }


class Chunks:
    """The frames of a stream. `text_choice` makes a choice around a text.

    All but the text of a delta is encoded once, not once a token.
    """

    def __init__(
        self, head: dict[str, object], text_choice: Callable[[str], Choice], *, include_usage: bool
    ) -> None:
        self._head = head
        self._include_usage = include_usage
        before, _, after = self.chunk(text_choice(_MARK)).decode().partition(encode_line(_MARK))
        self._before, self._after = before, after

    def text(self, text: str) -> bytes:
        """A chunk with text and without logprobs."""
        return f"{self._before}{encode_line(text)}{self._after}".encode()

    def chunk(self, choice: Choice) -> bytes:
        """A chunk with one choice."""
        fields = {**self._head, "choices": [choice]}
        if self._include_usage:
            fields["usage"] = None
        return data_frame(fields)

    def end(self, finish: Finish) -> bytes:
        """What follows the last choice: usage, if asked for, and `[DONE]`."""
        if not self._include_usage:
            return DONE
        fields = {**self._head, "choices": [], "usage": usage(finish.usage)}
        return data_frame(fields) + DONE
