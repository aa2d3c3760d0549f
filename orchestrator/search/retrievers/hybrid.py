"""Fuses a full-text search with a search by vectors.

Reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009): a passage's score is the sum of
weight / (k + rank) over the searches that found it. Ranks are used because BM25 scores and cosine
similarities are not comparable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mesh.observability import semconv
from mesh.observability.recording.current import current_span
from orchestrator.index.vectors import EmbeddingModel
from orchestrator.search.embedders import Embedder
from orchestrator.search.retrieval import Retriever, SearchResult

logger = logging.getLogger(__name__)

K = 10
"""Smoothing constant of the fusion, in ranks: the lower, the more the first ranks count."""

TEXT_WEIGHT, VECTOR_WEIGHT = 1.0, 1.0

MIN_CANDIDATES = 100
"""Results of each search that are fused: a passage may be far down in one of them."""


@runtime_checkable
class VectorStore(Retriever, Protocol):
    """A search backend that also searches by vectors."""

    async def embedding_model(self) -> EmbeddingModel | None:
        """The encoder of the stored vectors, with name "" if it is not known; None without any."""
        ...

    async def search_vectors(
        self, query: str, vector: Sequence[float], limit: int, safe_search: bool
    ) -> list[SearchResult]:
        """The passages whose vectors are the most similar to `vector`, which is the query's."""
        ...


class HybridRetriever:
    """Searches by words and by vectors; by one of both if the other fails or is late."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        timeout_seconds: float,
        query_prefix: str = "",
        text_timeout_seconds: float | None = None,
    ) -> None:
        """`query_prefix` is the text that the encoder expects before a query.

        `timeout_seconds` limits the embedding and the search by vectors, `text_timeout_seconds` the
        search by words.
        """
        self.name = store.name
        self._query_prefix = query_prefix
        self._store = store
        self._embedder = embedder
        self._timeout_seconds = timeout_seconds
        self._text_timeout_seconds = text_timeout_seconds
        self._reported = ""

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        """Raises the error of the search by words if the one by vectors finds nothing."""
        wanted = max(limit, MIN_CANDIDATES)
        async with asyncio.TaskGroup() as tasks:
            vectors = tasks.create_task(self._search_vectors(query, wanted, safe_search))
            words = tasks.create_task(self._search_text(query, wanted, safe_search))
        nearest, by_text = vectors.result(), words.result()
        if not isinstance(by_text, Exception):
            return (fuse(by_text, nearest) if nearest else by_text)[:limit]
        if not nearest:
            raise by_text
        problem = _cause(by_text, self._text_timeout_seconds)
        self._report("vectors", "searching by vectors only", problem)
        return fuse([], nearest)[:limit]

    async def close(self) -> None:
        await self._store.close()
        await self._embedder.close()

    async def _search_text(
        self, query: str, limit: int, safe_search: bool
    ) -> list[SearchResult] | Exception:
        try:
            async with asyncio.timeout(self._text_timeout_seconds):
                return await self._store.search(query, limit, safe_search)
        except Exception as error:
            return error

    async def _search_vectors(
        self, query: str, limit: int, safe_search: bool
    ) -> list[SearchResult]:
        """Finds nothing, with the reason in the log and on the span, if the encoder fails."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                model = await self._store.embedding_model()
                if model is None:
                    return self._without_vectors("the documents have no vectors")
                if model.name not in ("", self._embedder.model):
                    return self._without_vectors(
                        f"the documents were embedded with {model.name}, "
                        f"not with {self._embedder.model}"
                    )
                [vector] = await self._embedder.embed([self._query_prefix + query])
                if model.dimensions not in (0, len(vector)):
                    return self._without_vectors(
                        f"the documents' vectors have {model.dimensions} dimensions, "
                        f"not {len(vector)}"
                    )
                found = await self._store.search_vectors(query, vector, limit, safe_search)
        except Exception as error:
            # The search by words does not fail with the one by vectors.
            problem = _cause(error, self._timeout_seconds)
        else:
            self._reported = ""
            current_span().set_attribute(semconv.RETRIEVAL_MODE, "fused")
            return found
        return self._without_vectors(problem)

    def _without_vectors(self, problem: str) -> list[SearchResult]:
        self._report("text", "searching by words only", problem)
        return []

    def _report(self, mode: str, message: str, problem: str) -> None:
        current_span().set_attributes(
            {semconv.RETRIEVAL_MODE: mode, semconv.RETRIEVAL_PROBLEM: problem}
        )
        # Once for each cause: an encoder that is down would fill the log.
        if problem != self._reported:
            self._reported = problem
            logger.warning(message, extra={"problem": problem})


def _cause(error: Exception, timeout_seconds: float | None) -> str:
    if isinstance(error, TimeoutError):
        return f"took longer than {timeout_seconds} s"
    return str(error) or type(error).__name__


def fuse(by_text: Sequence[SearchResult], by_vector: Sequence[SearchResult]) -> list[SearchResult]:
    """The results of both searches, each once, with their fused scores, best first."""
    scores: dict[tuple[str, str], float] = {}
    results: dict[tuple[str, str], SearchResult] = {}
    corrections = by_text[0].corrections if by_text else None
    similarities = {(each.document, each.text): each.score for each in by_vector}
    for weight, ranked in ((TEXT_WEIGHT, by_text), (VECTOR_WEIGHT, by_vector)):
        for rank, result in enumerate(ranked, 1):
            key = (result.document, result.text)
            results.setdefault(key, result)
            scores[key] = scores.get(key, 0.0) + weight / (K + rank)
    fused = (
        result._replace(
            score=scores[key], similarity=similarities.get(key), corrections=corrections
        )
        for key, result in results.items()
    )
    return sorted(fused, key=lambda result: -result.score)
