"""Results of several searches for one question, and questions near it."""

from __future__ import annotations

from orchestrator.search.conversation.merging import merge
from orchestrator.search.conversation.related import related_questions
from orchestrator.search.retrieval import SearchResult


def result(title: str, text: str, score: float = 1.0) -> SearchResult:
    """A result whose URL is its title."""
    return SearchResult(title, title, score, text)


def test_the_results_of_one_search_are_unchanged() -> None:
    """With their scores."""
    found = [result("A", "a", 9.0), result("B", "b", 3.0)]
    assert merge([found]) == found
    assert merge([[]]) == []


def test_results_of_several_searches_are_ranked_together() -> None:
    """By their shares of the best score of their searches; a passage found twice counts once."""
    strong = [result("A", "a", 90.0), result("B", "b", 30.0)]
    weak = [result("C", "c", 2.0), result("B", "b", 1.5), result("D", "d", 0.5)]
    merged = merge([strong, weak, []])
    assert [(each.title, each.score) for each in merged] == [
        ("A", 1.0),
        ("C", 1.0),
        ("B", 0.75),
        ("D", 0.25),
    ]


FOUND = [
    result("Flow control", "Flow control is a way to slow senders. It is old."),
    result("Flow control", "Windows are small."),
    result("gRPC", "It is fast. gRPC is an RPC framework. Streams are ordered."),
    result("Message queues", "Message queues, or brokers, are buffers between services."),
    result("Running a node", "Running a node is a task of the operator."),
    result("Dams", "A dam holds water."),
]


def test_a_definition_answers_what_its_subject_is() -> None:
    """The subject of the document; other passages answer their title, and none occurs twice."""
    assert related_questions(["weir"], FOUND, 9) == [
        "What is flow control?",
        "What is gRPC?",
        "What are message queues?",
        "Running a node",
        "Dams",
    ]


def test_a_definition_in_any_passage_precedes_the_title() -> None:
    """Also if another passage of the document was found first."""
    found = [result("Flow control", "Windows are small in flow control."), *FOUND[:1]]
    assert related_questions([], found, 3) == ["What is flow control?"]


def test_no_question_has_been_asked_before() -> None:
    """Nor is part of one; there are at most as many as wanted."""
    asked = ["how does flow control work", "gRPC or message queues"]
    assert related_questions(asked, FOUND, 1) == ["Running a node"]
    assert related_questions(asked, [], 3) == []
