"""Parses the answer of a chat model into reasoning, text and tool calls."""

from __future__ import annotations

from typing import NamedTuple

from mesh.protocol.deltas import ToolCallDelta
from orchestrator.text.reasoning import ReasoningParser
from orchestrator.text.token_texts import Spans
from orchestrator.text.tools.tool_calls import ToolCallParser


class AnswerDelta(NamedTuple):
    """New parts of an answer; all fields are empty while the text is held back."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def joined(self, other: AnswerDelta) -> AnswerDelta:
        """This delta and the next one as one."""
        return AnswerDelta(
            self.text + other.text,
            self.reasoning + other.reasoning,
            self.tool_calls + other.tool_calls,
        )


NO_DELTA = AnswerDelta()


class AnswerParser:
    """Parses one answer. Without a reasoning or tool-call parser all of it is text."""

    def __init__(
        self,
        reasoning: ReasoningParser | None = None,
        tool_calls: ToolCallParser | None = None,
    ) -> None:
        self._reasoning = reasoning
        self._tool_calls = tool_calls
        self._is_parsed = reasoning is not None or tool_calls is not None
        self._space: list[str] = []
        """White space that is held back: parsers search it again with each text that follows."""
        self._num_pushed = 0
        self._begin: int | None = None
        """Where the answer begins after the reasoning."""

    @property
    def spans(self) -> Spans:
        """The parts of the pushed text that were returned as text, as half-open ranges."""
        begin = self._answer_begin
        if begin is None:
            return []
        if self._tool_calls is None:
            return [(begin, self._num_pushed)]
        return [(begin + first, begin + last) for first, last in self._tool_calls.spans]

    @property
    def position(self) -> int:
        """Where the pushed text begins that was neither returned as text nor dropped."""
        begin = self._answer_begin
        if begin is None:
            return 0
        return self._num_pushed if self._tool_calls is None else begin + self._tool_calls.position

    @property
    def _answer_begin(self) -> int | None:
        return 0 if self._reasoning is None else self._begin

    def push(self, text: str) -> AnswerDelta:
        """Takes more text and returns what is certain now."""
        if self._is_parsed and text.isspace():
            self._space.append(text)
            return NO_DELTA
        if self._space:
            text = "".join(self._space) + text
            self._space.clear()
        return self._parse(text)

    def _parse(self, text: str) -> AnswerDelta:
        reasoning = ""
        self._num_pushed += len(text)
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        return self._delta(reasoning, text)

    def flush(self) -> AnswerDelta:
        """Returns what was held back. Called once, at the end of the text."""
        last = self._parse("".join(self._space)) if self._space else NO_DELTA
        self._space.clear()
        if self._reasoning is not None:
            last = last.joined(self._delta(*self._reasoning.flush()))
        if self._tool_calls is None:
            return last
        text, calls = self._tool_calls.flush()
        return last.joined(AnswerDelta(text, "", calls))

    def _delta(self, reasoning: str, text: str) -> AnswerDelta:
        if self._begin is None and text:
            self._begin = self._num_pushed - len(text)
        if self._tool_calls is None or not text:
            return AnswerDelta(text, reasoning)
        text, calls = self._tool_calls.push(text)
        return AnswerDelta(text, reasoning, calls)
