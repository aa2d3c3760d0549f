"""The exact text of the search prompt: the demo model was trained on it."""

from __future__ import annotations

from orchestrator.search.prompt import INSTRUCTIONS, Passage, search_messages


def test_the_prompt_numbers_each_source_and_each_sentence() -> None:
    """Question, sources with a number after each sentence, and the question again."""
    passages = [
        Passage("Foxes", "A fox is wild.  It lives\nin dens."),
        Passage(" Dogs\nand cats ", "Dogs bark."),
    ]
    system, user = search_messages("what  is\na fox", passages)
    assert (system.role, system.content) == ("system", INSTRUCTIONS)
    assert user.role == "user"
    assert user.content == (
        "Question: what is a fox\n\n"
        "Sources:\n\n"
        "[1] Foxes\nA fox is wild. [1]\nIt lives in dens. [1]\n\n"
        "[2] Dogs and cats\nDogs bark. [2]\n\n"
        "Question: what is a fox"
    )


def test_the_prompt_says_that_there_are_no_sources() -> None:
    """The list of sources reads "None." if there are no passages."""
    user = search_messages("fox", [])[1]
    assert user.content == "Question: fox\n\nSources:\n\nNone.\n\nQuestion: fox"
