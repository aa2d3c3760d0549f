"""Which of the passages found are shown, and which of these the summary rests on.

Maximal marginal relevance: the next one is the most relevant that says least of what is there
already. The first `MAX_PASSAGES` go into the prompt; they stand first, so that the number of a
citation is the position of a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from orchestrator.search.grounding.words import STOP_WORDS, stem, words_of
from orchestrator.search.retrieval import Result

NUM_CANDIDATES = 40
"""Passages that are looked at, for a choice of at most 20."""

MAX_PASSAGES = 5
"""In the prompt: more of them make a small model's answer worse, not better."""

MIN_RELEVANCE = 0.2
"""Share of the best score that a passage needs to be in the prompt."""

RELEVANCE_WEIGHT = 0.6
"""Against what is new in a passage."""

SAME_DOCUMENT = 0.4
"""How alike passages of one document are at least, beyond their words."""


def select(found: Sequence[Result], num_results: int) -> list[Result]:
    """At most `num_results` of `found`: first those for the prompt, then others; best first.

    Equal passages are shown once.
    """
    candidates = _distinct(found)
    words = [_word_set(result) for result in candidates]
    best = max((result.score for result in candidates), default=0.0)
    chosen: list[int] = []
    likeness = [0.0] * len(candidates)
    while len(chosen) < min(num_results, len(candidates)):
        rest = [index for index in range(len(candidates)) if index not in chosen]
        index = max(rest, key=lambda i: _gain(candidates[i], best, likeness[i]))
        chosen.append(index)
        for other in rest:
            like = _likeness(words[index], words[other])
            if candidates[index].document == candidates[other].document:
                like += SAME_DOCUMENT
            likeness[other] = max(likeness[other], min(like, 1.0))
    selected = [candidates[index] for index in chosen]
    return _ranked(selected[:MAX_PASSAGES]) + _ranked(selected[MAX_PASSAGES:])


def for_prompt(results: Sequence[Result]) -> Sequence[Result]:
    """The first of the selected `results`, as many as the summary is to rest on."""
    best = max((result.score for result in results), default=0.0)
    first = results[:MAX_PASSAGES]
    return [result for result in first if result.score >= MIN_RELEVANCE * best]


def _gain(result: Result, best: float, likeness: float) -> float:
    relevance = result.score / best if best > 0 else 0.0
    return RELEVANCE_WEIGHT * relevance - (1 - RELEVANCE_WEIGHT) * likeness


def _distinct(found: Sequence[Result]) -> list[Result]:
    seen: dict[str, Result] = {}
    for result in found:
        seen.setdefault(result.text, result)
    return list(seen.values())


def _word_set(result: Result) -> frozenset[str]:
    return frozenset(stem(word) for word in words_of(result.text) if word not in STOP_WORDS)


def _likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Cosine of the two sets: 0 for nothing in common, 1 for the same words."""
    return len(one & other) / sqrt(len(one) * len(other)) if one and other else 0.0


def _ranked(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: -result.score)
