"""Sorts the best results of a search again with a cross-encoder, over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from mesh.observability import semconv
from mesh.observability.recording.current import current_span
from orchestrator.search.http_json import HttpJsonClient, HttpJsonError
from orchestrator.search.retrieval import Retriever, SearchResult

logger = logging.getLogger(__name__)

NUM_RERANKED = 30
"""Best results that are sorted again; each costs the cross-encoder one forward pass."""


class RerankingRetriever:
    """Passes the best results to `POST URL/rerank`, the API of Jina, Cohere, vLLM and TEI.

    If the server fails or is late, the results keep their order.
    """

    def __init__(
        self, inner: Retriever, url: str, model: str, key: str, timeout_seconds: float
    ) -> None:
        """`url` ends before `/rerank`, such as `http://host:8080/v1`. Opens no connection."""
        self.name = inner.name
        self._inner = inner
        self._model = model
        self._client = HttpJsonClient(url, timeout_seconds, key=key)
        self._timeout_seconds = timeout_seconds

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        found = await self._inner.search(query, max(limit, NUM_RERANKED), safe_search)
        best, others = found[:NUM_RERANKED], found[NUM_RERANKED:]
        if not best:
            return []
        problem = f"took longer than {self._timeout_seconds} s"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                scores = await self._scores(query, best)
        except Exception as error:
            # The search does not fail with its reranker.
            if not isinstance(error, TimeoutError):
                problem = str(error) or type(error).__name__
            logger.warning("results are not reranked", extra={"problem": problem})
            current_span().set_attribute(semconv.RETRIEVAL_PROBLEM, problem)
            return found[:limit]
        return _rescored(best, scores, others)[:limit]

    async def close(self) -> None:
        await self._inner.close()
        await self._client.close()

    async def _scores(self, query: str, results: Sequence[SearchResult]) -> dict[int, float]:
        """The relevance of each result, by its place. Raises HttpJsonError or httpx.HTTPError."""
        body = {
            "model": self._model,
            "query": query,
            "documents": [f"{result.title}\n{result.text}" for result in results],
            "top_n": len(results),
            "return_documents": False,
        }
        response = await self._client.request("POST", "/rerank", body=body)
        ranked = response.get("results")
        if not isinstance(ranked, list):
            raise HttpJsonError("response must have the list results")
        scores: dict[int, float] = {}
        for each in ranked:
            place = each.get("index") if isinstance(each, dict) else None
            score = each.get("relevance_score") if isinstance(each, dict) else None
            if not isinstance(place, int) or not isinstance(score, int | float):
                raise HttpJsonError("each of results must have index and relevance_score")
            scores[place] = float(score)
        if scores.keys() != set(range(len(results))):
            raise HttpJsonError("results must have each document once")
        return scores


def _rescored(
    best: Sequence[SearchResult], scores: dict[int, float], others: Sequence[SearchResult]
) -> list[SearchResult]:
    """`best` in the order of `scores`, then `others`.

    Cross-encoders have scores of any range, also negative ones. Each result gets one of the
    scores that the first search gave, in the new order, so that scores stay comparable.
    """
    order = sorted(range(len(best)), key=lambda place: -scores[place])
    given = sorted((result.score for result in best), reverse=True)
    ranked = [best[place]._replace(score=score) for place, score in zip(order, given, strict=True)]
    return [*ranked, *others]
