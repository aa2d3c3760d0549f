"""Recognises sentences that say what the subject of a question is."""

from __future__ import annotations

from collections.abc import Set

import regex

from orchestrator.search.answering.relevance import own_words
from orchestrator.search.language.languages import detect_language, stem

_DEFINITION = regex.compile(
    r"(?P<subject>[^,.:;()]{1,80}?)(?:, or (?P<name>[^,]{1,40}),)? "
    r"(?:is|are|ist|sind|est|sont|es|son) \w"
)


def defines(sentence: str, wanted: Set[str]) -> bool:
    """Whether `sentence` begins with the words of the subject, whose stems are `wanted`, and "is".

    "Retrieval-augmented generation, or RAG, is a technique" defines both names.
    """
    found = _DEFINITION.match(sentence)
    if not found or not wanted:
        return False
    language = detect_language(sentence)
    names = (found["subject"], found["name"] or "")
    return any(wanted == set(map(stem, own_words(name, language))) for name in names)
