"""The prompt of a search: the question and the numbered passages, as chat messages.

Each sentence of a passage stands on a line of its own and ends in its source's number, so a
model that quotes a sentence quotes its citation with it. The question stands before the
passages, so that the model reads them knowing what is asked, and again behind them, next to
the answer.
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
"""What the demo model is trained to say when no source answers the question."""


class Passage(NamedTuple):
    """A piece of a document that a summary may rest on."""

    title: str
    text: str


class Message(NamedTuple):
    """One chat message; `role` is system, user, assistant or tool."""

    role: str
    content: str


def search_messages(query: str, passages: Sequence[Passage]) -> list[Message]:
    """The chat messages that ask for a summary of `passages`, numbered from 1, about `query`."""
    question = f"Question: {' '.join(query.split())}"
    sources = [format_source(number, passage) for number, passage in enumerate(passages, 1)]
    user = "\n\n".join([question, "Sources:", *(sources or ["None."]), question])
    return [Message("system", INSTRUCTIONS), Message("user", user)]


def format_source(number: int, passage: Passage) -> str:
    """A passage as the prompt shows it: numbered title, then a numbered sentence a line."""
    title = " ".join(passage.title.split())
    lines = [f"{sentence} [{number}]" for sentence in split_sentences(passage.text)]
    return "\n".join([f"[{number}] {title}", *lines])
