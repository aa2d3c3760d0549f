"""Selects which retrieved passages are returned, and which of them the prompt quotes.

Uses maximal marginal relevance (Carbonell and Goldstein, 1998): the next passage is the most
relevant one that repeats least of those selected before. The first `MAX_PASSAGES` are the
candidates for the prompt. They come first, so that the number of a citation is the position of
a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from orchestrator.search.language.languages import STOP_WORDS, stem
from orchestrator.search.language.words import split_words
from orchestrator.search.retrieval import SearchResult

NUM_CANDIDATES = 40
"""Passages to retrieve; at most 20 of them are selected."""

MAX_PASSAGES = 5
"""Maximum passages in the prompt: more of them make a small model's answer worse."""

MIN_RELEVANCE = 0.2
"""Minimum score of a passage in the prompt, as a fraction of the best score."""

RELEVANCE_WEIGHT = 0.6
"""Weight of relevance; the rest of 1 is the weight of novelty."""

SAME_DOCUMENT_SIMILARITY = 0.4
"""Added to the word similarity of two passages of the same document."""


def select_results(found: Sequence[SearchResult], num_results: int) -> list[SearchResult]:
    """Selects at most `num_results` of `found`: the prompt's candidates first, then the others.

    Both parts are sorted by score. Passages with equal text are returned once.
    """
    candidates = _distinct(found)
    words = [_word_set(result) for result in candidates]
    best = max((result.score for result in candidates), default=0.0)
    chosen: list[int] = []
    redundancy = [0.0] * len(candidates)
    while len(chosen) < min(num_results, len(candidates)):
        rest = [index for index in range(len(candidates)) if index not in chosen]
        index = max(rest, key=lambda i: _marginal_relevance(candidates[i], best, redundancy[i]))
        chosen.append(index)
        for other in rest:
            similarity = _similarity(words[index], words[other])
            if candidates[index].document == candidates[other].document:
                similarity += SAME_DOCUMENT_SIMILARITY
            redundancy[other] = max(redundancy[other], min(similarity, 1.0))
    selected = [candidates[index] for index in chosen]
    return _by_score(selected[:MAX_PASSAGES]) + _by_score(selected[MAX_PASSAGES:])


def select_for_prompt(results: Sequence[SearchResult]) -> Sequence[SearchResult]:
    """Returns the first of the selected `results` that are relevant enough for the prompt."""
    best = max((result.score for result in results), default=0.0)
    first = results[:MAX_PASSAGES]
    return [result for result in first if result.score >= MIN_RELEVANCE * best]


def _marginal_relevance(result: SearchResult, best: float, redundancy: float) -> float:
    relevance = result.score / best if best > 0 else 0.0
    return RELEVANCE_WEIGHT * relevance - (1 - RELEVANCE_WEIGHT) * redundancy


def _distinct(found: Sequence[SearchResult]) -> list[SearchResult]:
    seen: dict[str, SearchResult] = {}
    for result in found:
        seen.setdefault(result.text, result)
    return list(seen.values())


def _word_set(result: SearchResult) -> frozenset[str]:
    return frozenset(stem(word) for word in split_words(result.text) if word not in STOP_WORDS)


def _similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Cosine similarity of two word sets: 0 if disjoint, 1 if equal."""
    return len(one & other) / sqrt(len(one) * len(other)) if one and other else 0.0


def _by_score(results: Sequence[SearchResult]) -> list[SearchResult]:
    return sorted(results, key=lambda result: -result.score)
