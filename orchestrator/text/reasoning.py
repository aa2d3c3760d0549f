"""Tells a model's thinking, inside of tags, from its answer."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from orchestrator.text.held_text import overlap
from orchestrator.text.tools.tool_format import THINK_END, THINK_START


class Thought(NamedTuple):
    """What a piece of text comes to."""

    reasoning: str
    answer: str


class _At(Enum):
    BEGIN = auto()
    THINKING = auto()
    BEHIND = auto()
    """Behind the end tag: white space before the answer is none of it."""
    ANSWER = auto()


class Reasoning:
    """Splits one text. Thinking stands at its beginning or nowhere; white space around it goes."""

    def __init__(self, *, begun: bool) -> None:
        """`begun`: the prompt has already opened the tag."""
        self._at = _At.THINKING if begun else _At.BEGIN
        self._pending = ""
        self._shown = False

    def push(self, text: str) -> Thought:
        """Takes more text, gives what is certain now."""
        if self._at is _At.ANSWER:
            return Thought("", text)
        self._pending += text
        if self._at is _At.BEGIN:
            self._begin()
        reasoning = self._think() if self._at is _At.THINKING else ""
        return Thought(reasoning, self._answer())

    def flush(self) -> Thought:
        """What was held back; at the end of the text."""
        pending, self._pending = self._pending, ""
        if self._at is _At.THINKING:
            # The beginning of an end tag, or white space, which is told only before more.
            held = overlap(pending, THINK_END)
            return Thought(pending if held and pending[-held:].strip() else "", "")
        return Thought("", pending if self._at is _At.BEGIN else "")

    def _begin(self) -> None:
        begun = self._pending.lstrip()
        if begun.startswith(THINK_START):
            self._pending = begun[len(THINK_START) :]
            self._at = _At.THINKING
        elif not THINK_START.startswith(begun):
            self._at = _At.ANSWER

    def _think(self) -> str:
        if not self._shown:
            self._pending = self._pending.lstrip()
        found = self._pending.find(THINK_END)
        if found >= 0:
            reasoning = self._pending[:found].rstrip()
            self._pending = self._pending[found + len(THINK_END) :]
            self._at = _At.BEHIND
            return reasoning
        shown = len(self._pending) - overlap(self._pending, THINK_END)
        reasoning = self._pending[:shown].rstrip()
        self._pending = self._pending[len(reasoning) :]
        self._shown = self._shown or bool(reasoning)
        return reasoning

    def _answer(self) -> str:
        if self._at is _At.BEHIND:
            self._pending = self._pending.lstrip()
            if self._pending:
                self._at = _At.ANSWER
        if self._at is not _At.ANSWER:
            return ""
        answer, self._pending = self._pending, ""
        return answer
