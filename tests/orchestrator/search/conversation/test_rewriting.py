"""Questions that are rewritten so that they can be searched for without their conversation."""

from __future__ import annotations

import json

import pytest

from mesh.protocol.search import MAX_QUERY_CHARACTERS
from mesh.protocol.summary import Turn
from orchestrator.search.conversation.rewriting import (
    MAX_TURNS,
    Rewrite,
    add_subject,
    parse_rewrite,
    rewrite_constraint,
    rewrite_messages,
)
from orchestrator.search.prompt import INSTRUCTIONS, search_messages

HISTORY = [Turn("What is backpressure?", "It slows a sender. [1]"), Turn("Why does it matter?", "")]


@pytest.mark.parametrize(
    ("query", "question"),
    [
        ("and in gRPC?", "and in gRPC? backpressure"),
        ("How do queues avoid it?", "How do queues avoid it? backpressure"),
        ("Why?", "Why? backpressure"),
        ("tell me more", "tell me more backpressure"),
        ("What is Raft?", "What is Raft?"),
        ("Is it the same as Backpressure?", "Is it the same as Backpressure?"),
    ],
)
def test_a_question_that_refers_to_another_gets_its_subject(query: str, question: str) -> None:
    """The words of the last earlier question that names one."""
    assert add_subject(query, HISTORY) == Rewrite(question, [question])


def test_a_rewritten_question_is_a_valid_query() -> None:
    """However long the two are."""
    made = add_subject("x " * 249 + "it", [Turn("y" * 490, "")])
    assert len(made.question) <= MAX_QUERY_CHARACTERS
    assert add_subject("why?", []) == Rewrite("why?", ["why?"])


def test_the_prompt_begins_as_that_of_a_search() -> None:
    """So that the engine has its first blocks in the cache; old turns are left out."""
    system, user = rewrite_messages(
        "and\nin gRPC?", [Turn(f"turn {n}", "a" * 900) for n in range(9)]
    )
    assert system == search_messages("x", [])[0]
    assert system.content == INSTRUCTIONS
    assert user.content.count("Answer: ") == MAX_TURNS
    assert "turn 4" not in user.content
    assert "Last question: and in gRPC?" in user.content
    assert len(user.content) < 3500


@pytest.mark.parametrize(
    ("answer", "made"),
    [
        ({"question": " a  b ", "searches": ["a", "a", " b "]}, Rewrite("a b", ["a", "b"])),
        ({"question": "a", "searches": ["?"]}, Rewrite("a", ["a"])),
        ({"question": "!", "searches": ["a"]}, None),
        ({"question": "a" * 600, "searches": ["b", "c", "d"]}, Rewrite("a" * 500, ["b", "c"])),
    ],
)
def test_the_models_answer_is_checked(answer: object, made: Rewrite | None) -> None:
    """It is valid JSON unless it was cut off; the values may be anything."""
    text = json.dumps(answer)
    assert parse_rewrite(text, 2) == made
    assert parse_rewrite(text[:-3], 2) is None
    assert json.loads(rewrite_constraint(2).text)["properties"]["searches"]["maxItems"] == 2


@pytest.mark.parametrize(
    "answer", ['"a"', "[]", '{"question": "a"}', '{"question": 5, "searches": ["a"]}', "null"]
)
def test_an_answer_of_another_form_is_no_rewriting(answer: str) -> None:
    """Such as that of an engine that ignores the constraint; the search goes on without it."""
    assert parse_rewrite(answer, 2) is None
