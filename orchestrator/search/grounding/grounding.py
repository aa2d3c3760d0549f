"""Grounding: finds the span of the cited passage that supports each sentence of a summary.

The comparison is lexical, not semantic: a passage supports a sentence if up to three consecutive
sentences of it contain most of the sentence's words, all its numbers and the same negation,
mostly in the same order. Offsets count characters (Unicode code points).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from orchestrator.search.grounding.citations import CITATION, citation_numbers
from orchestrator.search.grounding.sentences import Span, sentence_spans
from orchestrator.search.grounding.stemming import STOP_WORDS, split_words, stem
from orchestrator.search.prompt import NOTHING_FOUND

MIN_WORDS_SHARE = 0.7
"""Fraction of a sentence's words that must occur in the supporting span."""

MIN_ORDER_SHARE = 0.5
"""Fraction of a sentence's words that must occur in the span in the same order."""

MAX_SENTENCES = 3
"""Maximum consecutive sentences of a passage that support one sentence."""

_NEGATIONS = frozenset(("no", "not", "never", "none", "nor", "neither", "without", "cannot"))
_SPACED_CITATION = re.compile(rf"\s*{CITATION.pattern}")


class Citation(NamedTuple):
    """A sentence of a summary, and one passage that it cites."""

    position: int
    """Number of the cited passage; 0 if the sentence cites none."""
    sentence: Span
    """Span of the sentence in the summary."""
    span: Span | None
    """Supporting span in the passage; None if the passage does not support the sentence."""


def ground(summary: str, passages: Mapping[int, str]) -> list[Citation]:
    """Returns the citations of each sentence of `summary`, in the order of the text.

    A sentence with several citations has one entry for each. `passages` maps numbers to texts and
    must contain every number that `summary` cites. The sentence `NOTHING_FOUND` makes no claim
    and has no entry.
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
    """Sentences without their citations; a citation belongs to the sentence before it."""
    parts, offsets = list[str](), list[int]()
    citations: list[tuple[int, list[int]]] = []
    end = 0
    for found in _SPACED_CITATION.finditer(summary):
        parts.append(summary[end : found.start()])
        offsets.extend(range(end, found.start()))
        citations.append((len(offsets), citation_numbers(found[0])))
        end = found.end()
    parts.append(summary[end:])
    offsets.extend(range(end, len(summary)))
    text = "".join(parts)
    spans = [span for span in sentence_spans(text) if any(map(str.isalnum, text[slice(*span)]))]
    for index, (begin, end) in enumerate(spans):
        # A citation before the first sentence belongs to it.
        first = begin + 1 if index else 0
        last = spans[index + 1].begin if index + 1 < len(spans) else len(text)
        numbers = [n for offset, ns in citations if first <= offset <= last for n in ns]
        span = Span(offsets[begin], offsets[end - 1] + 1)
        yield _Sentence(text[begin:end], span, list(dict.fromkeys(numbers)))


def find_support(sentence: str, passage: str) -> Span | None:
    """The span of `passage` that supports `sentence`; None if it does not support it."""
    quoted = r"\s+".join(map(re.escape, sentence.split()))
    if found := re.search(quoted, passage, re.IGNORECASE):
        return Span(*found.span())
    words = split_words(sentence)
    claimed = Counter(stem(word) for word in words if word not in STOP_WORDS - _NEGATIONS)
    if not claimed:
        return None
    best, best_shared = None, 0
    for span in _windows(sentence_spans(passage)):
        stated = Counter(map(stem, split_words(passage[slice(*span)])))
        shared = (claimed & stated).total()
        if shared > best_shared and _same_facts(claimed, stated):
            best, best_shared = span, shared
    if best is None or best_shared < MIN_WORDS_SHARE * claimed.total():
        return None
    stated_words = [stem(word) for word in split_words(passage[slice(*best)])]
    claimed_words = [stem(word) for word in words if stem(word) in claimed]
    in_order = _common_subsequence_length(claimed_words, stated_words)
    return best if in_order >= MIN_ORDER_SHARE * claimed.total() else None


def _windows(sentences: Sequence[Span]) -> Iterator[Span]:
    """Spans of one sentence, then of two consecutive ones, then of three."""
    for size in range(1, MAX_SENTENCES + 1):
        for first, last in zip(sentences, sentences[size - 1 :], strict=False):
            yield Span(first.begin, last.end)


def _same_facts(claimed: Counter[str], stated: Counter[str]) -> bool:
    """Whether all claimed numbers are stated, and both or neither contain a negation."""
    numbers = {word for word in claimed if any(map(str.isdigit, word))}
    negations = {stem(word) for word in _NEGATIONS}
    is_negated = not negations.isdisjoint(claimed)
    return numbers <= stated.keys() and is_negated != negations.isdisjoint(stated)


def _common_subsequence_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for column, other_word in enumerate(other, 1):
            above = lengths[column]
            longer = max(above, lengths[column - 1])
            lengths[column] = diagonal + 1 if word == other_word else longer
            diagonal = above
    return lengths[-1]
