"""Separates a model's reasoning, inside tags such as `<think>`, from its answer."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from mesh.text.held_text import overlap
from orchestrator.text.tools.formats import THINK
from orchestrator.text.tools.tool_format import ReasoningFormat


class SplitText(NamedTuple):
    """New text, split into its two parts."""

    reasoning: str
    answer: str


class _State(Enum):
    BEGIN = auto()
    REASONING = auto()
    AFTER_END_TAG = auto()
    """White space between the end tag and the answer is dropped."""
    ANSWER = auto()


class ReasoningParser:
    """Splits one text. Reasoning can only be at the beginning; white space around it is dropped."""

    def __init__(self, format: ReasoningFormat = THINK, *, begun: bool) -> None:
        """`begun`: the prompt has already opened the tag."""
        self._start, self._end = format.start, format.end
        self._state = _State.REASONING if begun else _State.BEGIN
        self._pending = ""
        self._has_reasoning = False

    def push(self, text: str) -> SplitText:
        """Takes more text and returns what is certain now."""
        if self._state is _State.ANSWER:
            return SplitText("", text)
        self._pending += text
        if self._state is _State.BEGIN:
            self._find_start_tag()
        reasoning = self._take_reasoning() if self._state is _State.REASONING else ""
        return SplitText(reasoning, self._take_answer())

    def flush(self) -> SplitText:
        """Returns what was held back. Called once, at the end of the text."""
        pending, self._pending = self._pending, ""
        if self._state is _State.REASONING:
            # An incomplete end tag is part of the reasoning; trailing white space is not.
            held = overlap(pending, self._end)
            return SplitText(pending if held and pending[-held:].strip() else "", "")
        return SplitText("", pending if self._state is _State.BEGIN else "")

    def _find_start_tag(self) -> None:
        begun = self._pending.lstrip()
        if begun.startswith(self._start):
            self._pending = begun[len(self._start) :]
            self._state = _State.REASONING
        elif not self._start.startswith(begun):
            self._state = _State.ANSWER

    def _take_reasoning(self) -> str:
        if not self._has_reasoning:
            self._pending = self._pending.lstrip()
        found = self._pending.find(self._end)
        if found >= 0:
            reasoning = self._pending[:found].rstrip()
            self._pending = self._pending[found + len(self._end) :]
            self._state = _State.AFTER_END_TAG
            return reasoning
        certain = len(self._pending) - overlap(self._pending, self._end)
        reasoning = self._pending[:certain].rstrip()
        self._pending = self._pending[len(reasoning) :]
        self._has_reasoning = self._has_reasoning or bool(reasoning)
        return reasoning

    def _take_answer(self) -> str:
        if self._state is _State.AFTER_END_TAG:
            self._pending = self._pending.lstrip()
            if self._pending:
                self._state = _State.ANSWER
        if self._state is not _State.ANSWER:
            return ""
        answer, self._pending = self._pending, ""
        return answer
