"""Corrects the misspelled words of a question that was searched.

These are the words that the search corrected, because no document has them. Of a search backend
that does not report them, they are those that no passage has, but a similar one. Names stay: a word
with a capital inside a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import regex

from orchestrator.search.answering.relevance import PassageWords, subject_words
from orchestrator.search.language.languages import stem
from orchestrator.search.language.spelling import max_errors, nearest
from orchestrator.search.language.words import split_words
from orchestrator.search.prompt import Passage


def respelled(
    question: str, passages: Sequence[Passage], corrections: Mapping[str, str] | None = None
) -> str:
    """The question with the right words instead of misspelled ones.

    `corrections` are those of the search; None if it does not report them.
    """
    wrong = [word for word in subject_words(question) if max_errors(word)]
    if not wrong or not passages:
        return question
    words = [PassageWords.of(each.title, each.text) for each in passages]
    missing = [word for word in wrong if not any(each.has(word) for each in words)]
    known = _similar(missing, passages) if corrections is None else corrections
    for word in missing:
        found = regex.search(rf"(?i)\b{regex.escape(word)}\b", question)
        if word in known and found and not _is_name(question, found.start()):
            question = regex.sub(rf"(?i)\b{regex.escape(word)}\b", known[word], question)
    return question


def _similar(wrong: Sequence[str], passages: Sequence[Passage]) -> dict[str, str]:
    """The nearest words of the passages."""
    known = Counter(word for each in passages for word in split_words(f"{each.title} {each.text}"))
    stems = Counter({stem(word): number for word, number in known.items()})
    found = {
        word: nearest(word, known.items()) or nearest(stem(word), stems.items()) for word in wrong
    }
    return {word: right for word, right in found.items() if right}


def _is_name(question: str, begin: int) -> bool:
    """Whether the word at `begin` has a capital though it is not the first one."""
    is_first = regex.search(r"\w", question[:begin]) is None
    return question[begin].isupper() and not is_first and not question.isupper()
