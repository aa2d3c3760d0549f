"""Searches the web by way of SearXNG, whose settings must allow the format `json`."""

from __future__ import annotations

from orchestrator.search.retrieval import Result
from orchestrator.search.retrievers.cutting import passages
from orchestrator.search.retrievers.http import (
    HttpEngine,
    SearchEngineError,
    number_field,
    text_field,
)

SAFE, NOT_SAFE = "2", "0"
"""Strict, and none, in SearXNG's words."""


class SearxngRetriever:
    """What search engines of the web say; their snippets are the passages."""

    name = "searxng"

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._engine = HttpEngine(url, timeout_seconds)

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        params = {"q": query, "format": "json", "safesearch": SAFE if safe_search else NOT_SAFE}
        answer = await self._engine.ask("GET", "/search", params=params)
        found = answer.get("results")
        if not isinstance(found, list):
            raise SearchEngineError("the answer has no results, not even none")
        documents = [
            Result(
                title=text_field(each, "title"),
                url=text_field(each, "url"),
                # Older versions tell no score; the order is the ranking then.
                score=number_field(each, "score") or 1 / place,
                text=text_field(each, "content"),
            )
            for place, each in enumerate(found[:limit], 1)
            if isinstance(each, dict)
        ]
        return passages((each for each in documents if each.text.strip()), query, limit)

    async def close(self) -> None:
        await self._engine.close()
