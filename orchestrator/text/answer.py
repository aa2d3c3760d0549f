"""One answer of a chat model, told apart: thinking, text, calls of tools."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.protocol.deltas import ToolCallDelta
from orchestrator.text.reasoning import Reasoning
from orchestrator.text.tools.tool_calls import Told, ToolCalls


@dataclass(frozen=True, slots=True)
class Piece:
    """What more of the text came to; all empty while it is held back."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __add__(self, other: Piece) -> Piece:
        """This piece and the next one."""
        return Piece(
            self.text + other.text, self.reasoning + other.reasoning, self.calls + other.calls
        )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.reasoning or self.calls)


class Answer:
    """Reads one answer; without thinking and tools it is its text."""

    def __init__(
        self, reasoning: Reasoning | None = None, tool_calls: ToolCalls | None = None
    ) -> None:
        self._reasoning = reasoning
        self._tool_calls = tool_calls

    def push(self, text: str) -> Piece:
        """Takes more text, gives what is certain now."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        return self._piece(reasoning, text)

    def flush(self) -> Piece:
        """What was held back; at the end of the text."""
        last = Piece() if self._reasoning is None else self._piece(*self._reasoning.flush())
        if self._tool_calls is None:
            return last
        told = self._tool_calls.flush()
        return last + Piece(told.text, "", told.calls)

    def _piece(self, reasoning: str, text: str) -> Piece:
        told = Told(text, ())
        if self._tool_calls is not None and text:
            told = self._tool_calls.push(text)
        return Piece(told.text, reasoning, told.calls)
