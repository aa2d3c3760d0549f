"""Searches OpenSearch, or a server compatible with its REST API.

Documents have the fields `title`, `url` and `text`, and optionally `unsafe: true`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from orchestrator.index.vectors import EmbeddingModel
from orchestrator.search.http_json import (
    HttpJsonClient,
    HttpJsonError,
    number_field,
    text_field,
)
from orchestrator.search.language import spelling
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.passages import rank_passages

_MISSPELLINGS = {
    "fuzziness": f"AUTO:{spelling.MIN_CHARACTERS},{spelling.LONG_CHARACTERS}",
    "prefix_length": 1,
    "boost": 0.1,
}
"""Words may have as many errors as those of an index file; correct ones count far more."""


class OpenSearchRetriever:
    """Full-text search with the server's own ranking, by default BM25, and k-NN search."""

    name = "opensearch"

    def __init__(self, url: str, index: str, timeout_seconds: float, embedding: str = "") -> None:
        """`embedding` is a field of type `knn_vector`, "" if there is none."""
        self._client = HttpJsonClient(url, timeout_seconds)
        self._path = f"/{quote(index, safe=',*')}/_search"
        self._timeout = f"{max(1, int(timeout_seconds * 1000))}ms"
        self._embedding = embedding

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        # Subfields, such as text.cjk, have analyzers for other scripts.
        fields = ["title^3", "title.*^3", "text", "text.*"]
        folded = unicodedata.normalize("NFC", query)
        match = {"query": folded, "fields": fields, "type": "most_fields"}
        spellings = [{"multi_match": match}, {"multi_match": {**match, **_MISSPELLINGS}}]
        clause = {"bool": {"should": spellings}}
        found = await self._find({"must": [clause]}, limit, safe_search)
        return await rank_passages(found, query, limit)

    async def embedding_model(self) -> EmbeddingModel | None:
        """Any encoder: the server does not store its name, and checks the dimensions."""
        return EmbeddingModel("", 0) if self._embedding else None

    async def search_vectors(
        self, query: str, vector: Sequence[float], limit: int, safe_search: bool
    ) -> list[SearchResult]:
        nearest: dict[str, Any] = {"vector": list(vector), "k": limit}
        if safe_search:
            # Inside the k-NN clause: a filter beside it would leave fewer than k results.
            nearest["filter"] = {"bool": {"must_not": [{"term": {"unsafe": True}}]}}
        clause = {"knn": {self._embedding: nearest}}
        found = await self._find({"must": [clause]}, limit, safe_search)
        return await rank_passages(found, query, limit, per_document=2)

    async def _find(
        self, clauses: dict[str, Any], limit: int, safe_search: bool
    ) -> list[SearchResult]:
        unsafe = [{"term": {"unsafe": True}}] if safe_search else []
        body = {
            "size": limit,
            "timeout": self._timeout,
            "_source": ["title", "url", "text"],
            "query": {"bool": {**clauses, "must_not": unsafe}},
        }
        response = await self._client.request("POST", self._path, body=body)
        return [*map(_result, _hits(response))]

    async def close(self) -> None:
        await self._client.close()


def _hits(response: Any) -> list[dict[str, Any]]:
    hits = response.get("hits")
    found = hits.get("hits") if isinstance(hits, dict) else None
    if not isinstance(found, list):
        raise HttpJsonError("response must have the list hits.hits")
    return [hit for hit in found if isinstance(hit, dict) and isinstance(hit.get("_source"), dict)]


def _result(hit: dict[str, Any]) -> SearchResult:
    source = hit["_source"]
    return SearchResult(
        title=text_field(source, "title"),
        url=text_field(source, "url"),
        score=number_field(hit, "_score"),
        text=text_field(source, "text"),
    )
