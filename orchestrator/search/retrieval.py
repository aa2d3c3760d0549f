"""Finding passages for a query: what comes back, and what must be able to do it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Result(NamedTuple):
    """A passage that was found."""

    title: str
    """Its document's."""
    url: str
    """Where the document is; empty if it is nowhere."""
    score: float
    """Higher is better; comparable within one answer."""
    text: str
    """Whole sentences of plain prose, about as long as `documents.PASSAGE_WORDS` says."""

    @property
    def document(self) -> str:
        """What passages of one document have in common."""
        return self.url or self.title


class Retriever(Protocol):
    """Something that can be searched."""

    name: str
    """What metrics call it; one of few."""

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        """At most `limit` passages, best first, several of a document among them.

        `safe_search` leaves out what is marked as unsafe. Raises whatever may go wrong; being
        cancelled ends the work behind it.
        """
        ...

    async def close(self) -> None:
        """Lets go of files, threads and connections."""
        ...


class NoRetriever:
    """Finds nothing: for a service without documents."""

    name = "none"

    async def search(self, query: str, limit: int, safe_search: bool) -> list[Result]:
        return []

    async def close(self) -> None:
        return None
