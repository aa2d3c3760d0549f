"""Answers in gpt-oss' harmony format, for any split of them."""

from __future__ import annotations

import random

import pytest

from orchestrator.text.answer import AnswerDelta
from orchestrator.text.harmony import HarmonyParser
from tests.orchestrator.text.tools.test_tool_calls import cuts

ANALYSIS = "<|channel|>analysis<|message|>Let me {see}.<|end|><|start|>assistant"
HEADER = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
ARGUMENTS = '{"city": "R\\"o{m}e 🏛 <|", "days": [1]}'

Calls = list[tuple[str, str]]

CASES: list[tuple[str, str, str, Calls]] = [
    (f"{ANALYSIS}<|channel|>final<|message|>It is\n<b>.", "Let me {see}.", "It is\n<b>.", []),
    (f"{ANALYSIS}{HEADER}{ARGUMENTS}", "Let me {see}.", "", [("f", ARGUMENTS)]),
    (
        f"{ANALYSIS} to=functions.f<|channel|>commentary json<|message|>{{}}<|call|>",
        "Let me {see}.",
        "",
        [("f", "{}")],
    ),
    (
        f"<|channel|>commentary<|message|>I will.<|end|><|start|>assistant{HEADER}{{}}",
        "",
        "I will.",
        [("f", "{}")],
    ),
    (
        f"{HEADER}{{}}<|call|><|start|>assistant{HEADER}{ARGUMENTS}<|call|>",
        "",
        "",
        [("f", "{}"), ("f", ARGUMENTS)],
    ),
    ("<|channel|>commentary to=browser.open<|message|>{}<|call|>", "{}", "", []),
    ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "", "{}", []),
    ("Plain text.", "", "Plain text.", []),
    ("  <|chan", "", "<|chan", []),
    ("<|channel|>final<|message|>a <|re", "", "a <|re", []),
    ("", "", "", []),
]


def read(pieces: list[str], *, single: bool = False) -> tuple[str, str, Calls]:
    """Reasoning, text and calls. Asserts that the spans are those of the text."""
    parser = HarmonyParser({"f": {}}, single=single)
    whole = AnswerDelta()
    for piece in pieces:
        whole = whole.joined(parser.push(piece))
    whole = whole.joined(parser.flush())
    calls: Calls = []
    for delta in whole.tool_calls:
        if delta.name:
            assert delta.id
            calls.append((delta.name, ""))
        name, arguments = calls[delta.number]
        calls[delta.number] = (name, arguments + delta.arguments)
    text = "".join(pieces)
    assert "".join(text[begin:end] for begin, end in parser.spans) == whole.text
    assert parser.position == len(text)
    return whole.reasoning, whole.text, calls


@pytest.mark.parametrize(("answer", "reasoning", "text", "calls"), CASES)
def test_messages_are_separated_by_channel(
    answer: str, reasoning: str, text: str, calls: Calls
) -> None:
    """Cut at any position the result is the same."""
    for pieces in cuts(answer):
        assert read(list(pieces)) == (reasoning, text, calls), pieces


def test_the_result_does_not_depend_on_the_cuts() -> None:
    """For two hundred answers put together at random from the parts of messages."""
    parts = "<|start|> assistant <|channel|> analysis final commentary <|message|> <|end|> <|call|>"
    choices = [*parts.split(), " to=functions.f", " to=g", "text", "{}", " ", "<|", "x" * 401]
    rng = random.Random(1)
    for _ in range(200):
        answer = "".join(rng.choices(choices, k=rng.randrange(16)))
        whole = read([answer])
        assert read(list(answer)) == whole, answer
        at = rng.randrange(len(answer) + 1)
        assert read([answer[:at], answer[at:]]) == whole, answer


def test_single_returns_only_the_first_call() -> None:
    """Further calls are dropped."""
    answer = f"{HEADER}{{}}<|call|><|start|>assistant{HEADER}{{}}"
    assert read([answer], single=True) == ("", "", [("f", "{}")])
