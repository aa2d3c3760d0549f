"""Builds the chat messages of a search prompt: the question and the numbered passages.

Each sentence of a passage is on its own line and ends in the number of its source, so a model
that quotes a sentence also quotes its citation. The question comes before the passages, so that
the model reads them with the question in mind, and once more after them, next to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.search.grounding.sentences import split_sentences

INSTRUCTIONS = (
    "Answer the question in two or three sentences taken from the numbered sources. "
    "End each sentence with the number of its source, like [1]. "
    "If the sources do not answer the question, say so."
)

NOTHING_FOUND = "Nothing was found about this in the sources."
"""The whole answer where no source answers the question."""


class Passage(NamedTuple):
    """A passage of a document that the summary may cite."""

    title: str
    text: str


class Message(NamedTuple):
    """One chat message; `role` is system, user, assistant or tool."""

    role: str
    content: str


def search_messages(query: str, passages: Sequence[Passage]) -> list[Message]:
    """The chat messages that request a summary of `passages`, numbered from 1, about `query`."""
    question = f"Question: {' '.join(query.split())}"
    sources = [format_source(number, passage) for number, passage in enumerate(passages, 1)]
    user = "\n\n".join([question, "Sources:", *(sources or ["None."]), question])
    return [Message("system", INSTRUCTIONS), Message("user", user)]


def format_source(number: int, passage: Passage) -> str:
    """Formats a passage for the prompt: its numbered title, then one numbered sentence a line."""
    title = " ".join(passage.title.split())
    lines = [f"{sentence} [{number}]" for sentence in split_sentences(passage.text)]
    return "\n".join([f"[{number}] {title}", *lines])
