"""Searches OpenSearch, or a server compatible with its REST API.

Documents have the fields `title`, `url` and `text`, and optionally `unsafe: true`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.passages import rank_passages
from orchestrator.search.retrievers.search_engine import (
    SearchEngineClient,
    SearchEngineError,
    number_field,
    text_field,
)


class OpenSearchRetriever:
    """Full-text search with the server's own ranking, by default BM25."""

    name = "opensearch"

    def __init__(self, url: str, index: str, timeout_seconds: float) -> None:
        self._client = SearchEngineClient(url, timeout_seconds)
        self._path = f"/{quote(index, safe=',*')}/_search"
        self._timeout = f"{max(1, int(timeout_seconds * 1000))}ms"

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        match = {"multi_match": {"query": query, "fields": ["title^3", "text"]}}
        unsafe = [{"term": {"unsafe": True}}] if safe_search else []
        body = {
            "size": limit,
            "timeout": self._timeout,
            "_source": ["title", "url", "text"],
            "query": {"bool": {"must": [match], "must_not": unsafe}},
        }
        response = await self._client.request("POST", self._path, body=body)
        return await rank_passages([*map(_result, _hits(response))], query, limit)

    async def close(self) -> None:
        await self._client.close()


def _hits(response: Any) -> list[dict[str, Any]]:
    hits = response.get("hits")
    found = hits.get("hits") if isinstance(hits, dict) else None
    if not isinstance(found, list):
        raise SearchEngineError("response must have the list hits.hits")
    return [hit for hit in found if isinstance(hit, dict) and isinstance(hit.get("_source"), dict)]


def _result(hit: dict[str, Any]) -> SearchResult:
    source = hit["_source"]
    return SearchResult(
        title=text_field(source, "title"),
        url=text_field(source, "url"),
        score=number_field(hit, "_score"),
        text=text_field(source, "text"),
    )
