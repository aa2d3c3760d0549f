"""Finds the span of a passage that supports a sentence, by comparing their words.

The comparison is lexical, not semantic: a passage supports a sentence if up to three consecutive
sentences of it contain most of the sentence's words, all its numbers and names and the same
negation, mostly in the same order. A sentence that nearly is a copy must have no other words at
all: one changed word makes a true sentence false. Offsets count characters (Unicode code points).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import NamedTuple

from mesh.protocol.summary import Span
from orchestrator.search.grounding.sentences import sentence_spans
from orchestrator.search.language.languages import STOP_WORDS, stem
from orchestrator.search.language.words import split_words

MIN_WORDS_SHARE = 0.7
"""Fraction of a sentence's words that must occur in the supporting span."""

MIN_ORDER_SHARE = 0.5
"""Fraction of a sentence's words that must occur in the span in the same order."""

NEAR_COPY_SHARE = 0.8
"""Fraction of a sentence's words in the same order above which it is a copy, so that all its words
must occur."""

MAX_SENTENCES = 3
"""Maximum consecutive sentences of a passage that support one sentence."""

_NEGATIONS = frozenset(("no", "not", "never", "none", "nor", "neither", "without", "cannot"))
_NEGATION_STEMS = frozenset(map(stem, _NEGATIONS))

# Words that a copy may add without another meaning.
_LINKING_STEMS = frozenset(
    map(stem, "also any both however its such then therefore these those thus while".split())
)
_STOP_STEMS = frozenset(map(stem, STOP_WORDS))
_CAPITALIZED = re.compile(r"[^\W\d_]\w*")


class _Window(NamedTuple):
    """Up to `MAX_SENTENCES` consecutive sentences of a passage, with the stems of their words."""

    span: Span
    words: Sequence[str]
    counts: Mapping[str, int]


class SupportFinder:
    """Finds support for any number of sentences in one passage, whose words are split once."""

    def __init__(self, passage: str) -> None:
        self._folded, self._offsets = _fold(passage)
        sentences = sentence_spans(passage)
        words = [list(map(stem, split_words(passage[slice(*span)]))) for span in sentences]
        self._windows = list(_windows(sentences, words))
        self._counts = Counter(chain.from_iterable(words))

    def find_copy(self, sentence: str) -> Span | None:
        """The span of the passage that equals `sentence`, except for case and white space."""
        quoted = _fold(sentence)[0].strip()
        place = self._folded.find(quoted)
        if place < 0 or not quoted:
            return None
        return Span(self._offsets[place], self._offsets[place + len(quoted) - 1] + 1)

    def find(self, sentence: str) -> Span | None:
        """The span of the passage that supports `sentence`; None if there is none."""
        copied = self.find_copy(sentence)
        if copied is not None:
            return copied
        words = split_words(sentence)
        claimed = Counter(stem(word) for word in words if word not in STOP_WORDS - _NEGATIONS)
        least = MIN_WORDS_SHARE * claimed.total()
        if not claimed or _num_shared(claimed, self._counts) < least:
            return None
        best = self._best_window(claimed, _names(sentence))
        if best is None or _num_shared(claimed, best.counts) < least:
            return None
        claimed_words = [stem(word) for word in words if stem(word) in claimed]
        in_order = _common_subsequence_length(claimed_words, best.words)
        if in_order > NEAR_COPY_SHARE * claimed.total():
            return best.span if claimed.keys() - _LINKING_STEMS <= best.counts.keys() else None
        return best.span if in_order >= MIN_ORDER_SHARE * claimed.total() else None

    def _best_window(self, claimed: Counter[str], names: Set[str]) -> _Window | None:
        """The first of the windows with the same facts that share most words with `claimed`."""
        best, best_shared = None, 0
        for window in self._windows:
            shared = _num_shared(claimed, window.counts)
            has_names = names <= window.counts.keys()
            if shared > best_shared and has_names and _same_facts(claimed, window.counts):
                best, best_shared = window, shared
        return best


def _names(sentence: str) -> Set[str]:
    """The stems of words that are names: in capitals, and not only because they come first."""
    found = list(_CAPITALIZED.finditer(sentence))
    names = [
        each[0]
        for number, each in enumerate(found)
        if (each[0] if number == 0 else each[0][:1]).isupper() and len(each[0]) > 1
    ]
    return {stem(word) for name in names for word in split_words(name)} - _STOP_STEMS


def _fold(text: str) -> tuple[str, list[int]]:
    """`text` in lower case with single spaces, and the offset in `text` of each character."""
    folded: list[str] = []
    offsets: list[int] = []
    for offset, character in enumerate(text):
        if character.isspace():
            if folded and folded[-1] == " ":
                continue
            character = " "
        for each in character.lower():  # may be several characters
            folded.append(each)
            offsets.append(offset)
    return "".join(folded), offsets


def _windows(sentences: Sequence[Span], words: Sequence[list[str]]) -> Iterator[_Window]:
    """Spans of one sentence, then of two consecutive ones, then of three."""
    for size in range(1, MAX_SENTENCES + 1):
        for begin in range(len(sentences) - size + 1):
            end = begin + size
            stems = list(chain.from_iterable(words[begin:end]))
            span = Span(sentences[begin].begin, sentences[end - 1].end)
            yield _Window(span, stems, Counter(stems))


def _num_shared(claimed: Mapping[str, int], stated: Mapping[str, int]) -> int:
    return sum(min(number, stated[word]) for word, number in claimed.items() if word in stated)


def _same_facts(claimed: Mapping[str, int], stated: Mapping[str, int]) -> bool:
    """Whether all claimed numbers are stated, and both or neither contain a negation."""
    numbers = {word for word in claimed if any(map(str.isdigit, word))}
    is_negated = not _NEGATION_STEMS.isdisjoint(claimed)
    return numbers <= stated.keys() and is_negated != _NEGATION_STEMS.isdisjoint(stated)


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
