"""Questions that the documents can answer, from the passages near those of an answer.

A passage that says what the subject of its document is answers the question what that is; any other
passage answers its document's title. Nothing is generated: each question has its answer in a
passage that was found.
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
    questions: list[str] = []
    documents: set[str] = set()
    for result in found:
        if result.document in documents:
            continue
        passage = [PassageWords.of(result.title, result.text)]
        language = passage[0].language
        for question in _candidates(result, language):
            subject = frozenset(map(stem, own_words(question, language)))
            is_new = subject and not any(subject <= each for each in known)
            if is_new and judge(question, passage) is Verdict.ANSWER:
                known.append(subject)
                questions.append(question)
                documents.add(result.document)
                break
        if len(questions) == max_questions:
            break
    return questions


def _candidates(result: SearchResult, language: str) -> Iterator[str]:
    """A question by the first definition in the passage, then the title of its document."""
    title = " ".join(result.title.split())
    titled = frozenset(map(stem, own_words(title, language)))
    for sentence in split_sentences(result.text):
        found = _DEFINITION.match(sentence)
        subject = found["subject"].strip() if found else ""
        named = frozenset(map(stem, own_words(subject, language)))
        if found and _is_subject(subject) and named and named <= titled:
            yield f"What {found['verb']} {_uncapitalized(subject)}?"
            break
    if title and len(title) <= MAX_SUBJECT_CHARACTERS:
        yield title


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
