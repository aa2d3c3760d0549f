"""Corrects the words of a question that no passage has, by the words of the passages.

The passages were found for the other words, or for the nearest spelling of this one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import regex

from orchestrator.search.answering.relevance import PassageWords, subject_words
from orchestrator.search.language.languages import stem
from orchestrator.search.language.spelling import max_errors, nearest
from orchestrator.search.language.words import split_words
from orchestrator.search.prompt import Passage


def respelled(question: str, passages: Sequence[Passage]) -> str:
    """The question with the nearest words of the passages instead of misspelled ones."""
    wrong = [word for word in subject_words(question) if max_errors(word)]
    if not wrong or not passages:
        return question
    words = [PassageWords.of(each.title, each.text) for each in passages]
    known = Counter(word for each in passages for word in split_words(f"{each.title} {each.text}"))
    stems = Counter({stem(word): number for word, number in known.items()})
    for word in wrong:
        if any(each.has(word) for each in words):
            continue
        found = nearest(word, known.items()) or nearest(stem(word), stems.items())
        if found:
            question = regex.sub(rf"(?i)\b{regex.escape(word)}\b", found, question)
    return question
