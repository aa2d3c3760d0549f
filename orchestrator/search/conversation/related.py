"""Questions that the documents can answer, from the passages near those of an answer.

A passage that says what the subject of its document is answers the question what that is; a
document without such a passage answers its title. Nothing is generated: each question has its
answer in a passage that was found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from orchestrator.search.answering.relevance import PassageWords, Verdict, judge, own_words
from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.language.languages import stem
from orchestrator.search.retrieval import SearchResult

MAX_QUESTIONS = 3
MAX_SUBJECT_CHARACTERS = 60
MAX_SUBJECT_WORDS = 5

_DEFINITION = re.compile(r"(?P<subject>[^,.:;()]+?)(?:, or [^,]+,)? (?P<verb>is|are) \w")
_NOT_SUBJECTS = re.compile(
    r"(?i)(?:this|that|these|those|it|they|there|here|what|which|who|each|every|both|some|many|most"
    r"|all|one|such|another|other|no|if|when|where|while|because|although|its|their|his|her|our|we"
    r"|you|i|\w+ing \w+)\b"
)
_ARTICLE = re.compile(r"(?i)(?:an?|the) ")


def related_questions(
    asked: Sequence[str], found: Sequence[SearchResult], max_questions: int
) -> list[str]:
    """At most `max_questions` questions that passages of `found` answer, best passage first.

    A document has one of them at most. None is about the subject of a question in `asked`, or of
    another one.
    """
    known = [frozenset(map(stem, own_words(question))) for question in asked]
    documents: dict[str, list[SearchResult]] = {}
    for result in found:
        documents.setdefault(result.document, []).append(result)
    questions: list[str] = []
    for results in documents.values():
        if len(questions) == max_questions:
            break
        for question, passage in _candidates(results):
            subject = frozenset(map(stem, own_words(question, passage.language)))
            is_new = subject and not any(subject <= each for each in known)
            if is_new and judge(question, [passage]) is Verdict.ANSWER:
                known.append(subject)
                questions.append(question)
                break
    return questions


def _candidates(results: Sequence[SearchResult]) -> Iterator[tuple[str, PassageWords]]:
    """Questions by definitions in a document's passages, then its title; each with its passage."""
    passages = [(each, PassageWords.of(each.title, each.text)) for each in results]
    for result, passage in passages:
        question = _definition(result, passage.language)
        if question:
            yield question, passage
    for result, passage in passages:
        title = " ".join(result.title.split())
        if title and len(title) <= MAX_SUBJECT_CHARACTERS:
            yield title, passage


def _definition(result: SearchResult, language: str) -> str:
    """The question what a subject is, by the first definition of the passage; "" without one."""
    titled = frozenset(map(stem, own_words(result.title, language)))
    for sentence in split_sentences(result.text):
        found = _DEFINITION.match(sentence)
        subject = found["subject"].strip() if found else ""
        named = frozenset(map(stem, own_words(subject, language)))
        if found and _is_subject(subject) and named and named <= titled:
            return f"What {found['verb']} {_uncapitalized(subject)}?"
    return ""


def _is_subject(subject: str) -> bool:
    return (
        len(subject) <= MAX_SUBJECT_CHARACTERS
        and len(subject.split()) <= MAX_SUBJECT_WORDS
        and not _NOT_SUBJECTS.match(subject)
    )


def _uncapitalized(subject: str) -> str:
    """A subject as it is written inside a sentence: without the capital of its first word."""
    first, _, rest = subject.partition(" ")
    is_name = first[1:] != first[1:].lower() or rest != rest.lower() or not first[1:]
    if _ARTICLE.match(subject) or not is_name:
        return subject[:1].lower() + subject[1:]
    return subject
