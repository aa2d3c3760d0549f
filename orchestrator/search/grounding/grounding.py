"""Where a summary's sentences come from: the span of the cited passage that each rests on.

The comparison is of words, not of meaning: a sentence is supported where most of its words, its
numbers and its negation occur in up to three neighbouring sentences of the passage, mostly in
the same order. Offsets count characters (Unicode code points).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.search.grounding.citations import CITATION, numbers_in
from orchestrator.search.grounding.sentences import Span, sentence_spans
from orchestrator.search.grounding.words import STOP_WORDS, stem, words_of
from orchestrator.search.prompt import NOTHING_FOUND

MIN_WORDS_SHARE = 0.7
"""Share of a sentence's words that must occur in what it rests on."""

MIN_ORDER_SHARE = 0.5
"""Share of them that must occur there in the same order."""

MAX_SENTENCES = 3
"""Neighbouring sentences of a passage that one sentence may sum up."""

_NEGATIONS = frozenset(("no", "not", "never", "none", "nor", "neither", "without", "cannot"))
_SPACED_CITATION = re.compile(rf"\s*{CITATION.pattern}")


class Citation(NamedTuple):
    """A sentence of a summary, and what it cites."""

    position: int
    """The passage's number; 0 where the sentence cites none."""
    sentence: Span
    """In the summary."""
    span: Span | None
    """In the passage; None where nothing in it supports the sentence."""


def ground(summary: str, passages: Mapping[int, str]) -> list[Citation]:
    """What each sentence of `summary` rests on, in its order; a sentence may cite several.

    `passages` has the texts that may be cited by their numbers, and must have every number that
    `summary` cites. That nothing was found is no claim, and needs no source.
    """
    return [
        Citation(number, sentence.span, find_support(sentence.text, passages[number]))
        if number
        else Citation(0, sentence.span, None)
        for sentence in _sentences(summary)
        if sentence.text != NOTHING_FOUND
        for number in sentence.numbers or [0]
    ]


class _Sentence(NamedTuple):
    text: str
    span: Span
    numbers: list[int]


def _sentences(summary: str) -> Iterator[_Sentence]:
    """The sentences without their citations; one belongs to the text right before it."""
    pieces, places = list[str](), list[int]()
    citations: list[tuple[int, list[int]]] = []
    end = 0
    for found in _SPACED_CITATION.finditer(summary):
        pieces.append(summary[end : found.start()])
        places.extend(range(end, found.start()))
        citations.append((len(places), numbers_in(found[0])))
        end = found.end()
    pieces.append(summary[end:])
    places.extend(range(end, len(summary)))
    text = "".join(pieces)
    spans = [span for span in sentence_spans(text) if any(map(str.isalnum, text[slice(*span)]))]
    for index, (begin, end) in enumerate(spans):
        # A citation in front of everything belongs to the first sentence.
        first = begin + 1 if index else 0
        last = spans[index + 1].begin if index + 1 < len(spans) else len(text)
        numbers = [n for place, numbers in citations if first <= place <= last for n in numbers]
        span = Span(places[begin], places[end - 1] + 1)
        yield _Sentence(text[begin:end], span, list(dict.fromkeys(numbers)))


def find_support(sentence: str, passage: str) -> Span | None:
    """The part of `passage` that says what `sentence` says; None if there is none."""
    quoted = r"\s+".join(map(re.escape, sentence.split()))
    if found := re.search(quoted, passage, re.IGNORECASE):
        return Span(*found.span())
    words = words_of(sentence)
    asked = Counter(stem(word) for word in words if word not in STOP_WORDS - _NEGATIONS)
    if not asked:
        return None
    best, best_shared = None, 0
    for span in _windows(sentence_spans(passage)):
        said = Counter(map(stem, words_of(passage[slice(*span)])))
        shared = (asked & said).total()
        if shared > best_shared and _same_facts(asked, said):
            best, best_shared = span, shared
    if best is None or best_shared < MIN_WORDS_SHARE * asked.total():
        return None
    said_words = [stem(word) for word in words_of(passage[slice(*best)])]
    in_order = _common_length([stem(word) for word in words if stem(word) in asked], said_words)
    return best if in_order >= MIN_ORDER_SHARE * asked.total() else None


def _windows(sentences: Sequence[Span]) -> Iterator[Span]:
    """One sentence first, then two neighbours, then three."""
    for size in range(1, MAX_SENTENCES + 1):
        for first, last in zip(sentences, sentences[size - 1 :], strict=False):
            yield Span(first.begin, last.end)


def _same_facts(asked: Counter[str], said: Counter[str]) -> bool:
    """No number that is not there, and neither says no to what the other says yes to."""
    numbers = {word for word in asked if any(map(str.isdigit, word))}
    negations = {stem(word) for word in _NEGATIONS}
    denies = not negations.isdisjoint(asked)
    return numbers <= said.keys() and denies != negations.isdisjoint(said)


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, against in enumerate(other, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == against else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]
