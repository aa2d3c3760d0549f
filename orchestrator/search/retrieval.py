"""The retriever interface, and the results that a retriever returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

MAX_TITLE_CHARACTERS = 300
MAX_URL_CHARACTERS = 2048
MAX_TEXT_CHARACTERS = 2000
"""Maximum lengths in a search result. Indexed passages are shorter; other servers' need not be."""


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
    similarity: float | None = None
    """Similarity of the passage's vector to the query's; None if it was not found by its vector."""
    corrections: tuple[tuple[str, str], ...] | None = None
    """Words of the query that are in no document, each with the word that was searched instead;
    None if the search backend does not report them."""

    @property
    def document(self) -> str:
        """Key that is equal for passages of the same document."""
        return self.url or self.title

    def shortened(self) -> SearchResult:
        """This result within the maximum lengths; a URL that is too long is dropped."""
        return self._replace(
            title=self.title[:MAX_TITLE_CHARACTERS],
            url=self.url if len(self.url) <= MAX_URL_CHARACTERS else "",
            text=self.text[:MAX_TEXT_CHARACTERS],
        )


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
