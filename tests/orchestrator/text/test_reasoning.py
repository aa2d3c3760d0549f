"""Thinking is told from the answer, however the text is cut."""

from __future__ import annotations

import pytest

from orchestrator.text.answer import Answer, Piece
from orchestrator.text.reasoning import Reasoning
from orchestrator.text.tools.tool_calls import ToolCalls
from orchestrator.text.tools.tool_format import HERMES
from tests.orchestrator.text.tools.test_tool_calls import cuts

CASES = [
    (False, "<think>\nWhy? <b>\n\nSo.\n</think>\n\nBecause.", "Why? <b>\n\nSo.", "Because."),
    (False, " \n<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    (False, "No thought: </think>.", "", "No thought: </think>."),
    (False, "<thin ice", "", "<thin ice"),
    (False, "<th", "", "<th"),
    (False, "  plain", "", "  plain"),
    (False, "", "", ""),
    (True, "\nHm.\n</think>\n\nYes", "Hm.", "Yes"),
    (True, "cut off </t", "cut off </t", ""),
    (True, "cut off \n", "cut off", ""),
    (True, "</think>Yes ", "", "Yes "),
]


@pytest.mark.parametrize(("begun", "text", "reasoning", "answer"), CASES)
def test_thinking_and_answer(begun: bool, text: str, reasoning: str, answer: str) -> None:
    """The tags and the white space around them belong to neither."""
    for pieces in cuts(text):
        reader = Reasoning(begun=begun)
        told = [reader.push(piece) for piece in pieces]
        told.append(reader.flush())
        assert "".join(each.reasoning for each in told) == reasoning, pieces
        assert "".join(each.answer for each in told) == answer, pieces


def test_thinking_then_calls() -> None:
    """What looks like a call inside of the thinking is a thought."""
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    text = f"<think>{call}</think>\n\nOk.\n{call}"
    for pieces in cuts(text):
        answer = Answer(Reasoning(begun=False), ToolCalls(HERMES, ["f"]))
        whole = Piece()
        for piece in pieces:
            whole += answer.push(piece)
        whole += answer.flush()
        assert (whole.reasoning, whole.text) == (call, "Ok.")
        assert {each.number for each in whole.calls} == {0}
        assert "".join(each.arguments for each in whole.calls) == '{"a": 1}'


def test_without_either_the_answer_is_the_text() -> None:
    """At once, and unchanged."""
    answer = Answer()
    assert answer.push(" a\n") == Piece(" a\n")
    assert answer.flush().empty
