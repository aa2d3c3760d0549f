"""The retriever interface, and the results that a retriever returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class SearchResult(NamedTuple):
    """A retrieved passage."""

    title: str
    """Title of the passage's document."""
    url: str
    """URL of the document; empty if it has none."""
    score: float
    """Relevance; higher is better. Comparable only within the results of one search."""
    text: str
    """Whole sentences of plain prose, about `documents.PASSAGE_WORDS` words."""

    @property
    def document(self) -> str:
        """Key that is equal for passages of the same document."""
        return self.url or self.title


class Retriever(Protocol):
    """A search backend."""

    name: str
    """Value of the metrics' label `provider`; one of a small fixed set."""

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        """Returns at most `limit` passages, best first; a document may have several of them.

        `safe_search` leaves out documents marked as unsafe. May raise any exception.
        Cancellation also stops the search in the backend.
        """
        ...

    async def close(self) -> None:
        """Closes files, threads and connections."""
        ...


class NoRetriever:
    """Finds nothing; used when no search backend is configured."""

    name = "none"

    async def search(self, query: str, limit: int, safe_search: bool) -> list[SearchResult]:
        return []

    async def close(self) -> None:
        return None
