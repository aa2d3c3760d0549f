"""Rewrites a question so that it can be understood, and searched for, without its conversation.

The model does this under a JSON schema. Where it cannot, the words of the earlier question are
added to a question that refers to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.search import MAX_QUERY_CHARACTERS
from mesh.protocol.summary import Turn
from orchestrator.search.answering.relevance import own_words
from orchestrator.search.language.languages import stem
from orchestrator.search.language.words import split_words
from orchestrator.search.prompt import INSTRUCTIONS, Message

MAX_TOKENS = 160
"""Maximum tokens that the model writes for a rewritten question."""

MAX_TURNS = 4
MAX_ANSWER_CHARACTERS = 600
"""How much of the conversation the model reads: the last turns, and the beginnings of answers."""

_TASK = (
    "Rewrite the last question so that it can be understood without the conversation. If it asks "
    "several things, split it into searches. Write JSON: the question, and the searches."
)

# Words with which a question refers to the one before it.
_REFERRING = frozenset(
    "it its they them their theirs this that these those he she his her him there former latter "
    "same such else another others".split()
)
_CONTINUING = frozenset("and or but so also then".split())


class Rewrite(NamedTuple):
    """A question that can be understood alone, and what to search for."""

    question: str
    searches: Sequence[str]
    """One or more queries."""


def rewrite_messages(query: str, history: Sequence[Turn]) -> list[Message]:
    """The chat messages that request the rewriting.

    They begin as those of a search do, and then with the conversation, so that the engine finds
    both in its prefix cache.
    """
    turns = [
        f"Question: {_line(turn.query)}\nAnswer: {_line(turn.summary)[:MAX_ANSWER_CHARACTERS]}"
        for turn in history[-MAX_TURNS:]
    ]
    user = "\n\n".join(["Conversation:", *turns, f"Last question: {_line(query)}", _TASK])
    return [Message("system", INSTRUCTIONS), Message("user", user)]


def rewrite_constraint(max_searches: int) -> OutputConstraint:
    """The form of the model's answer."""
    text = {"type": "string", "minLength": 1, "maxLength": MAX_QUERY_CHARACTERS}
    schema = {
        "type": "object",
        "properties": {
            "question": text,
            "searches": {
                "type": "array",
                "items": text,
                "minItems": 1,
                "maxItems": max_searches,
            },
        },
        "required": ["question", "searches"],
        "additionalProperties": False,
    }
    return OutputConstraint(ConstraintForm.JSON_SCHEMA, json.dumps(schema))


class _Answer(BaseModel):
    """What the model writes."""

    model_config = ConfigDict(strict=True)

    question: str
    searches: list[str]


def parse_rewrite(text: str, max_searches: int) -> Rewrite | None:
    """The model's answer; None if it is cut off, has no words, or another form.

    Other engines than Weir's may ignore the constraint.
    """
    try:
        made = _Answer.model_validate_json(text)
    except ValidationError:
        return None
    question = _line(made.question)[:MAX_QUERY_CHARACTERS].strip()
    searches = [_line(each)[:MAX_QUERY_CHARACTERS].strip() for each in made.searches]
    if not split_words(question):
        return None
    wanted = [each for each in searches if split_words(each)] or [question]
    return Rewrite(question, list(dict.fromkeys(wanted))[:max_searches])


def add_subject(query: str, history: Sequence[Turn]) -> Rewrite:
    """The question with the words of the last earlier one that has any, if it refers to it."""
    subject = next((words for turn in reversed(history) if (words := own_words(turn.query))), [])
    known = set(map(stem, split_words(query)))
    added = " ".join(word for word in subject if stem(word) not in known)
    if not added or not _refers(query):
        return Rewrite(query, [query])
    question = f"{query[: MAX_QUERY_CHARACTERS - len(added) - 1]} {added}"[:MAX_QUERY_CHARACTERS]
    return Rewrite(question, [question])


def _refers(query: str) -> bool:
    words = split_words(query)
    continues = bool(words) and words[0] in _CONTINUING
    return continues or not own_words(query) or not _REFERRING.isdisjoint(words)


def _line(text: str) -> str:
    return " ".join(text.split())
