"""Searches the web with SearXNG, whose `search.formats` setting must include `json`."""

from __future__ import annotations

from orchestrator.search.http_json import (
    HttpJsonClient,
    HttpJsonError,
    number_field,
    text_field,
)
from orchestrator.search.retrieval import SearchResult
from orchestrator.search.retrievers.passages import rank_passages

SAFE, NOT_SAFE = "2", "0"
"""Values of SearXNG's parameter `safesearch`: strict and none."""


class SearxngRetriever:
    """Web search; the passages are the snippets of the search results."""

    name = "searxng"

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._client = HttpJsonClient(url, timeout_seconds)

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        params = {"q": query, "format": "json", "safesearch": SAFE if safe_search else NOT_SAFE}
        response = await self._client.request("GET", "/search", params=params)
        found = response.get("results")
        if not isinstance(found, list):
            raise HttpJsonError("response must have the list results")
        documents = [
            SearchResult(
                title=text_field(each, "title"),
                url=text_field(each, "url"),
                # Older versions send no score: derive it from the rank.
                score=number_field(each, "score") or 1 / rank,
                text=text_field(each, "content"),
            )
            for rank, each in enumerate(found[:limit], 1)
            if isinstance(each, dict)
        ]
        found_text = [each for each in documents if each.text.strip()]
        return await rank_passages(found_text, query, limit)

    async def close(self) -> None:
        await self._client.close()
