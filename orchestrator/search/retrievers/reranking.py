"""Sorts the best results of a search again with a cross-encoder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from mesh.observability import semconv
from mesh.observability.recording.current import current_span
from orchestrator.search.rerankers import Reranker
from orchestrator.search.retrieval import Retriever, SearchResult

logger = logging.getLogger(__name__)

NUM_RERANKED = 30
"""Best results that are sorted again; each costs the cross-encoder one forward pass."""


class RerankingRetriever:
    """Sorts the best results of a search by a reranker.

    If it fails or is late, the results keep their order.
    """

    def __init__(self, inner: Retriever, reranker: Reranker, timeout_seconds: float) -> None:
        """Owns both, and closes them."""
        self.name = inner.name
        self._inner = inner
        self._reranker = reranker
        self._timeout_seconds = timeout_seconds
        self._reported = ""

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        found = await self._inner.search(query, max(limit, NUM_RERANKED), safe_search)
        best, others = found[:NUM_RERANKED], found[NUM_RERANKED:]
        if not best:
            return []
        problem = f"took longer than {self._timeout_seconds} s"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                texts = [f"{result.title}\n{result.text}" for result in best]
                scores = await self._reranker.scores(query, texts)
        except Exception as error:
            # The search does not fail with its reranker.
            if not isinstance(error, TimeoutError):
                problem = str(error) or type(error).__name__
            current_span().set_attribute(semconv.RETRIEVAL_PROBLEM, problem)
            # Once for each cause: a reranker that is down would fill the log.
            if problem != self._reported:
                self._reported = problem
                logger.warning("results are not reranked", extra={"problem": problem})
            return found[:limit]
        self._reported = ""
        return _rescored(best, scores, others)[:limit]

    async def close(self) -> None:
        await self._inner.close()
        await self._reranker.close()


def _rescored(
    best: Sequence[SearchResult], scores: Sequence[float], others: Sequence[SearchResult]
) -> list[SearchResult]:
    """`best` in the order of `scores`, then `others`.

    Cross-encoders have scores of any range, also negative ones. Each result gets one of the
    scores that the first search gave, in the new order, so that scores stay comparable.
    """
    order = sorted(range(len(best)), key=lambda place: -scores[place])
    given = sorted((result.score for result in best), reverse=True)
    ranked = [best[place]._replace(score=score) for place, score in zip(order, given, strict=True)]
    return [*ranked, *others]
