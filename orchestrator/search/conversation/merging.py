"""Merges the results of several searches for one question."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.search.retrieval import SearchResult


def merge(lists: Sequence[Sequence[SearchResult]]) -> list[SearchResult]:
    """The results of all searches, best first, each passage once.

    Scores of different queries cannot be compared, so each is divided by the best of its query.
    The results of one search are returned unchanged.
    """
    if len(lists) == 1:
        return list(lists[0])
    merged: dict[tuple[str, str], SearchResult] = {}
    for found in lists:
        best = max((result.score for result in found), default=0.0)
        for result in found:
            share = result.score / best if best > 0 else 0.0
            key = (result.document, result.text)
            if key not in merged or merged[key].score < share:
                merged[key] = result._replace(score=share)
    return sorted(merged.values(), key=lambda result: -result.score)
