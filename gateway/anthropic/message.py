"""Answers of the Messages API: one object, or its parts as events of a stream.

Both are made of the same blocks, so they have the same content.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from pydantic_core import from_json

from gateway.http.json_text import encode_line
from gateway.streaming.sse import typed_frame
from gateway.upstream.blocks import Block, BlockEvent, BlockKind, Blocks, BlockStep
from mesh.context import current_request
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

_NO_PARTIAL_INPUT = "INVALID_JSON"
"""Key of arguments that are no JSON object, as Anthropic recommends for passing them on."""

_DELTAS = {
    BlockKind.TEXT: ("text_delta", "text"),
    BlockKind.REASONING: ("thinking_delta", "thinking"),
    BlockKind.TOOL_CALL: ("input_json_delta", "partial_json"),
}
"""Type of the deltas of a block, and the name of their field."""


_NO_END: Mapping[str, object] = {
    "container": None,
    "stop_details": None,
    "stop_reason": None,
    "stop_sequence": None,
}
"""The fields about the end of a message, while it has none."""

_NO_USAGE: Mapping[str, object] = {
    "cache_creation": None,
    "inference_geo": None,
    "speed": None,
    "service_tier": "standard",
}
"""The fields of a message's usage that are not token counts."""


class MessageEnd:
    """Why the message ended."""

    def __init__(self, finish: GenerationFinish, max_tokens: int, *, calls: bool) -> None:
        self.stop_sequence = finish.stop_string or None
        if finish.reason is FinishReason.LENGTH:
            within = finish.usage.completion_tokens < max_tokens
            self.stop_reason = "model_context_window_exceeded" if within else "max_tokens"
        elif finish.stop_string:
            self.stop_reason = "stop_sequence"
        else:
            self.stop_reason = "tool_use" if calls else "end_turn"

    def fields(self) -> dict[str, object]:
        """Its fields in a message."""
        return {**_NO_END, "stop_reason": self.stop_reason, "stop_sequence": self.stop_sequence}


class MessageParts:
    """One answer: takes its deltas; returns them as events, and at its end the whole message."""

    def __init__(self, *, max_tokens: int, omits_thinking: bool) -> None:
        """`omits_thinking`: thinking blocks have a signature only."""
        self._max_tokens = max_tokens
        self._omits_thinking = omits_thinking
        self._blocks = Blocks()
        self._around = ("", "")
        """The frame of a delta of the open block, before and after its text."""

    def add(self, delta: Delta) -> None:
        """Take the next delta of an answer that is not streamed."""
        self._blocks.push(delta)

    def frames(self, delta: Delta) -> bytes:
        """Take the next delta and encode its events; empty if it has none."""
        events = self._blocks.push(delta)
        if len(events) == 1:  # nearly all deltas
            return self._frame(events[0])
        return b"".join(map(self._frame, events))

    def whole(
        self, model: str, finish: GenerationFinish, usage: dict[str, object]
    ) -> dict[str, object]:
        """The message."""
        content = [self._content(block) for block in self._blocks.all]
        return _message(model, content, self._end(finish).fields(), usage)

    def last_frames(self, finish: GenerationFinish, usage: dict[str, object]) -> bytes:
        """The events after the last delta."""
        closed = b"".join(map(self._frame, self._blocks.finish()))
        end = self._end(finish).fields()
        delta = {"type": "message_delta", "delta": end, "usage": usage}
        stop = typed_frame("message_stop", {"type": "message_stop"})
        return closed + typed_frame("message_delta", delta) + stop

    def _end(self, finish: GenerationFinish) -> MessageEnd:
        calls = any(block.kind is BlockKind.TOOL_CALL for block in self._blocks.all)
        return MessageEnd(finish, self._max_tokens, calls=calls)

    def _content(self, block: Block) -> dict[str, object]:
        match block.kind:
            case BlockKind.TEXT:
                return {"type": "text", "text": block.text, "citations": None}
            case BlockKind.REASONING:
                text = "" if self._omits_thinking else block.text
                return {"type": "thinking", "thinking": text, "signature": _signature(block)}
        return _tool_use(block, _input(block.text))

    def _frame(self, event: BlockEvent) -> bytes:
        if event.step is BlockStep.PIECE:
            return self._piece(event)
        if event.step is BlockStep.OPEN:
            return self._open(event.block)
        return self._close(event.block)

    def _piece(self, event: BlockEvent) -> bytes:
        if not event.text or (self._omits_thinking and event.block.kind is BlockKind.REASONING):
            return b""
        before, after = self._around
        return f"{before}{encode_line(event.text)}{after}".encode()

    def _open(self, block: Block) -> bytes:
        # Everything except the text of a delta is encoded once for each block, not for each token.
        kind, field = _DELTAS[block.kind]
        self._around = (
            "event: content_block_delta\n"
            f'data: {{"type":"content_block_delta","index":{block.index},'
            f'"delta":{{"type":"{kind}","{field}":',
            "}}\n\n",
        )
        empty: dict[str, object] = {"type": "text", "text": "", "citations": None}
        if block.kind is BlockKind.REASONING:
            empty = {"type": "thinking", "thinking": "", "signature": ""}
        elif block.kind is BlockKind.TOOL_CALL:
            empty = _tool_use(block, {})
        start = {"type": "content_block_start", "index": block.index, "content_block": empty}
        return typed_frame("content_block_start", start)

    def _close(self, block: Block) -> bytes:
        signed = b""
        if block.kind is BlockKind.REASONING:
            delta = {"type": "signature_delta", "signature": _signature(block)}
            fields = {"type": "content_block_delta", "index": block.index, "delta": delta}
            signed = typed_frame("content_block_delta", fields)
        stop = {"type": "content_block_stop", "index": block.index}
        return signed + typed_frame("content_block_stop", stop)


def message_id() -> str:
    """The id of the current request's message."""
    request = current_request()
    return f"msg_{'' if request is None else request.request_id}"


def start_frames(model: str, usage: dict[str, object]) -> bytes:
    """The events before the first delta."""
    message = _message(model, [], _NO_END, usage)
    return typed_frame("message_start", {"type": "message_start", "message": message}) + PING


def _message(
    model: str,
    content: list[dict[str, object]],
    end: Mapping[str, object],
    usage: dict[str, object],
) -> dict[str, object]:
    return {
        "id": message_id(),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "diagnostics": None,
        **end,
        "usage": {**usage, **_NO_USAGE},
    }


def _tool_use(block: Block, input: dict[str, object]) -> dict[str, object]:
    return {
        "type": "tool_use",
        "id": block.id,
        "name": block.name,
        "input": input,
        "caller": {"type": "direct"},
    }


def _signature(block: Block) -> str:
    """Identifies the text of a thinking block; it is not verified."""
    return sha256(block.text.encode("utf-8", "surrogatepass")).hexdigest()


def _input(arguments: str) -> dict[str, object]:
    """The arguments of a call as an object; cut-off ones as far as they go, as SDKs read them."""
    try:
        value = from_json(arguments or "{}", allow_partial=True)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {_NO_PARTIAL_INPUT: arguments}
