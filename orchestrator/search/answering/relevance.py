"""Decides whether the passages that were found answer a query, or whether nothing was found.

The measure is coverage: the greatest fraction of the query's words that two neighbouring sentences
of a passage have, its title included. Words of a request for text, such as "overview", are no part
of the subject. The thresholds are those of the best decisions on the questions over
`examples/corpus` of `models/demo/evaluate.py`, whose report on other documents is in
`models/demo/README.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from enum import IntEnum, auto
from typing import NamedTuple

from orchestrator.search.grounding.sentences import split_sentences
from orchestrator.search.language.asking import ASKING_WORDS, without_phrases
from orchestrator.search.language.languages import detect_language, is_stop_word, stem
from orchestrator.search.language.words import split_words

MIN_COVERAGE = 0.5
"""Coverage up to which nothing was found. With half of the words, a passage mentions one thing
where the question relates two."""

SURE_COVERAGE = 0.65
"""Coverage from which an answer is certain to be in a passage; below it the model decides."""

MIN_SIMILARITY = 0.5
"""Similarity of a passage's vector to the query's from which the passage may answer in other words,
so that the model decides."""

_FORM_WORDS = frozenset(
    "advantage advantages basics benefit benefits definition detail details difference differences "
    "example examples explained explanation further guide happen happened happens important "
    "importance introduction matter matters meaning more overview purpose reason reasons summary "
    "tutorial".split()
)
"""Words that ask for a kind of text about a subject."""

_MIN_PREFIX = 7
"""Characters of a word that suffice where its stem is not found: "compress" and "compression"."""


class Verdict(IntEnum):
    """What the passages have to say about a query; a greater one is better."""

    NOTHING = auto()
    """They are about something else."""
    UNSURE = auto()
    """They may answer the query; the model decides."""
    ANSWER = auto()


class PassageWords(NamedTuple):
    """The stems of the words of a passage, or of a part of it, those of its title, and the
    initials of the title.
    """

    text: Set[str]
    title: Set[str]
    initials: str
    language: str

    @classmethod
    def of(cls, title: str, text: str) -> PassageWords:
        """Splits the words."""
        language = detect_language(f"{title} {text}")
        words = [word for word in split_words(title) if not is_stop_word(word, [language])]
        initials = "".join(word[0] for word in words)
        return cls(stems(text, language), stems(title, language), initials, language)

    @classmethod
    def windows(cls, title: str, text: str) -> list[PassageWords]:
        """The words of each two neighbouring sentences."""
        whole = cls.of(title, text)
        sentences = [stems(each, whole.language) for each in split_sentences(text)]
        pairs = zip(sentences, [*sentences[1:], frozenset[str]()], strict=False)
        return [whole._replace(text=one | other) for one, other in pairs]

    def has(self, word: str) -> bool:
        """Whether the passage has a word of the query, here or in its title."""
        if word == self.initials or stem(word, self.language) in self.text | self.title:
            return True
        prefix = word[:_MIN_PREFIX]
        return len(prefix) == _MIN_PREFIX and any(
            other.startswith(prefix) for part in (self.text, self.title) for other in part
        )


def stems(text: str, language: str = "en") -> frozenset[str]:
    """The stems of a text's words."""
    return frozenset(stem(word, language) for word in split_words(text))


def subject_words(query: str) -> list[str]:
    """The distinct words of a query that its subject has; all of them if there are no others."""
    words = list(dict.fromkeys(split_words(query)))
    return own_words(without_phrases(query)) or _content(query, words) or words


def own_words(query: str, language: str = "") -> list[str]:
    """The distinct words of a query that name its subject; none in "why does it matter?".

    `language` is that of the query, if it is known: a few words hardly show theirs.
    """
    words = dict.fromkeys(split_words(query))
    return [
        word
        for word in _content(query, words, language)
        if word not in _FORM_WORDS and word not in ASKING_WORDS
    ]


def _content(query: str, words: Iterable[str], language: str = "") -> list[str]:
    """The words that are no stop words of the query's language, nor of English."""
    languages = (language or detect_language(query), "en")
    return [word for word in words if not is_stop_word(word, languages)]


def coverage(query: str, passages: Sequence[PassageWords]) -> float:
    """The greatest fraction of the query's words that one passage has, 0 to 1."""
    words = subject_words(query)
    if not words:
        return 0.0
    return max((sum(map(each.has, words)) / len(words) for each in passages), default=0.0)


def judge(query: str, passages: Sequence[PassageWords], similarity: float = 0.0) -> Verdict:
    """What the passages have to say about `query`; `similarity` is the greatest of a vector."""
    covered = coverage(query, passages)
    if covered <= MIN_COVERAGE:
        return Verdict.UNSURE if similarity >= MIN_SIMILARITY else Verdict.NOTHING
    return Verdict.ANSWER if covered >= SURE_COVERAGE else Verdict.UNSURE
