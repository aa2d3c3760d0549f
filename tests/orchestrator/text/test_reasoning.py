"""Reasoning is separated from the answer, however the text is split."""

from __future__ import annotations

import pytest

from orchestrator.text.answer import AnswerDelta, AnswerParser
from orchestrator.text.reasoning import ReasoningParser
from orchestrator.text.tools.formats import HERMES
from orchestrator.text.tools.tool_calls import ToolCallParser
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
def test_reasoning_and_answer(begun: bool, text: str, reasoning: str, answer: str) -> None:
    """The tags and the white space around them are dropped."""
    for pieces in cuts(text):
        parser = ReasoningParser(begun=begun)
        deltas = [parser.push(piece) for piece in pieces]
        deltas.append(parser.flush())
        assert "".join(each.reasoning for each in deltas) == reasoning, pieces
        assert "".join(each.answer for each in deltas) == answer, pieces


def test_calls_follow_reasoning() -> None:
    """A tool call inside the reasoning stays reasoning."""
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    text = f"<think>{call}</think>\n\nOk.\n{call}"
    for pieces in cuts(text):
        answer = AnswerParser(ReasoningParser(begun=False), ToolCallParser(HERMES, ["f"]))
        whole = AnswerDelta()
        for piece in pieces:
            whole = whole.joined(answer.push(piece))
        whole = whole.joined(answer.flush())
        assert (whole.reasoning, whole.text) == (call, "Ok.")
        assert {each.number for each in whole.tool_calls} == {0}
        assert "".join(each.arguments for each in whole.tool_calls) == '{"a": 1}'


def test_without_parsers_the_answer_is_the_text() -> None:
    """The text passes at once and unchanged."""
    answer = AnswerParser()
    assert answer.push(" a\n") == AnswerDelta(" a\n")
    assert not any(answer.flush())
