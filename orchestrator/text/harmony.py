"""Parses answers in gpt-oss' harmony format, whose messages have channels.

<|channel|>analysis<|message|>REASONING<|end|><|start|>assistant
<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS<|call|>
<|channel|>final<|message|>TEXT<|return|>
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, auto

from mesh.protocol.deltas import ToolCallDelta
from mesh.text.held_text import overlap
from orchestrator.text.answer import AnswerDelta
from orchestrator.text.tools.formats import HARMONY
from orchestrator.text.tools.tool_calls import make_id
from orchestrator.text.tools.tool_format import (
    HARMONY_CHANNEL,
    HARMONY_ENDS,
    HARMONY_MESSAGE,
    HARMONY_START,
)

_CHANNEL = re.compile(rf"{re.escape(HARMONY_CHANNEL)}\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_BEGINNINGS = (HARMONY_START, HARMONY_CHANNEL, "to=")
_FUNCTIONS = "functions."
_MAX_HEADER = 400


class _State(Enum):
    BEGIN = auto()
    """Before the first message. A text without a header is a text."""
    HEADER = auto()
    TEXT = auto()
    REASONING = auto()
    CALL = auto()
    BETWEEN = auto()
    """Between two messages."""


class HarmonyParser:
    """Parses one answer; has the interface of `AnswerParser`."""

    def __init__(self, names: Collection[str], *, single: bool = False) -> None:
        """`names`: the tools of the request. `single`: only the first call is returned."""
        self._names = names
        self._single = single
        self._state = _State.BEGIN
        self._pending = ""
        self._num_calls = 0
        self._delta = AnswerDelta()
        self.position = 0
        """Number of characters that were returned or dropped."""
        self.spans: list[tuple[int, int]] = []
        """Half-open ranges of the answer that were returned as text; adjacent ones are joined."""

    def push(self, text: str) -> AnswerDelta:
        """Takes more text and returns what is certain now."""
        self._pending += text
        return self._parse(final=False)

    def flush(self) -> AnswerDelta:
        """Returns what was held back. Called once, at the end of the text."""
        return self._parse(final=True)

    def _parse(self, *, final: bool) -> AnswerDelta:
        while self._pending and self._step(final):
            pass
        delta, self._delta = self._delta, AnswerDelta()
        return delta

    def _step(self, final: bool) -> bool:
        """Consumes part of the pending text; returns False if more text is needed first."""
        match self._state:
            case _State.BEGIN | _State.BETWEEN:
                return self._step_between(final)
            case _State.HEADER:
                return self._step_header(final)
            case _:
                return self._step_body(final)

    def _step_between(self, final: bool) -> bool:
        # White space between messages is dropped at once: it may be long.
        self._drop(len(self._pending) - len(self._pending.lstrip()))
        if not self._pending:
            return False
        if self._pending.startswith(_BEGINNINGS):
            self._state = _State.HEADER
        elif any(each.startswith(self._pending) for each in _BEGINNINGS) and not final:
            return False
        else:
            self._state = _State.TEXT
        return True

    def _step_header(self, final: bool) -> bool:
        limit = _MAX_HEADER + len(HARMONY_MESSAGE)
        end = self._pending.find(HARMONY_MESSAGE, 0, limit)
        if end < 0:
            if len(self._pending) >= limit:
                self._state = _State.TEXT
                self._return(1)  # so that the marker is not found again
                return True
            if final:
                self._drop(len(self._pending))
            return False
        header = self._pending[:end]
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._drop(end + len(HARMONY_MESSAGE))
        name = "" if recipient is None else recipient[1].removeprefix(_FUNCTIONS)
        if name in self._names:
            self._state = _State.CALL
            self._add_call(ToolCallDelta(self._num_calls, make_id(HARMONY), name))
        elif recipient is not None or (channel is not None and channel[1] == "analysis"):
            self._state = _State.REASONING
        else:
            self._state = _State.TEXT
        return True

    def _step_body(self, final: bool) -> bool:
        found = [at for marker in HARMONY_ENDS if (at := self._pending.find(marker)) >= 0]
        if not found:
            held = max(overlap(self._pending, marker) for marker in HARMONY_ENDS)
            self._return(len(self._pending) - (0 if final else held))
            return False
        self._return(min(found))
        if self._state is _State.CALL:
            self._num_calls += 1
        for marker in HARMONY_ENDS:
            if self._pending.startswith(marker) and marker not in _BEGINNINGS:
                self._drop(len(marker))
                break
        self._state = _State.BETWEEN
        return True

    def _return(self, length: int) -> None:
        """Returns the first characters of the pending text, which belong to the body."""
        if not length:
            return
        text = self._pending[:length]
        begin = self.position
        self._drop(length)
        match self._state:
            case _State.REASONING:
                self._delta = self._delta.joined(AnswerDelta(reasoning=text))
            case _State.CALL:
                self._add_call(ToolCallDelta(self._num_calls, arguments=text))
            case _:
                self._delta = self._delta.joined(AnswerDelta(text))
                if self.spans and self.spans[-1][1] == begin:
                    begin = self.spans.pop()[0]
                self.spans.append((begin, self.position))

    def _add_call(self, call: ToolCallDelta) -> None:
        if not (self._single and self._num_calls):
            self._delta = self._delta.joined(AnswerDelta(tool_calls=(call,)))

    def _drop(self, length: int) -> None:
        self._pending = self._pending[length:]
        self.position += length
