"""Searches OpenSearch, or what speaks its REST API, for documents with a title, url and text.

A document may be marked with `unsafe: true`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from orchestrator.search.retrieval import Result
from orchestrator.search.retrievers.cutting import passages
from orchestrator.search.retrievers.http import (
    HttpEngine,
    SearchEngineError,
    number_field,
    text_field,
)


class OpenSearchRetriever:
    """Full-text search by the engine's own ranking, BM25 as a rule."""

    name = "opensearch"

    def __init__(self, url: str, index: str, timeout_seconds: float) -> None:
        self._engine = HttpEngine(url, timeout_seconds)
        self._path = f"/{quote(index, safe=',*')}/_search"
        self._timeout = f"{max(1, int(timeout_seconds * 1000))}ms"

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        match = {"multi_match": {"query": query, "fields": ["title^3", "text"]}}
        unsafe = [{"term": {"unsafe": True}}] if safe_search else []
        body = {
            "size": limit,
            "timeout": self._timeout,
            "_source": ["title", "url", "text"],
            "query": {"bool": {"must": [match], "must_not": unsafe}},
        }
        answer = await self._engine.ask("POST", self._path, body=body)
        return passages(map(_result, _hits(answer)), query, limit)

    async def close(self) -> None:
        await self._engine.close()


def _hits(answer: Any) -> list[dict[str, Any]]:
    hits = answer.get("hits")
    found = hits.get("hits") if isinstance(hits, dict) else None
    if not isinstance(found, list):
        raise SearchEngineError("the answer has no hits, not even none")
    return [hit for hit in found if isinstance(hit, dict) and isinstance(hit.get("_source"), dict)]


def _result(hit: dict[str, Any]) -> Result:
    source = hit["_source"]
    return Result(
        title=text_field(source, "title"),
        url=text_field(source, "url"),
        score=number_field(hit, "_score"),
        text=text_field(source, "text"),
    )
