"""`/api/v1/search`."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from gateway.schemas.common import MAX_UINT32, Answer, Body, UsageAnswer
from gateway.upstream.generation import Search
from gateway.validation.field_error import FieldError
from mesh.protocol.search import (
    DEFAULT_RESULTS,
    DEFAULT_SUMMARY_TOKENS,
    MAX_QUERY_CHARACTERS,
    MAX_RESULTS,
)


def _no_control_characters(query: str) -> str:
    for place, character in enumerate(query, 1):
        if unicodedata.category(character) == "Cc" and character not in "\t\n\r":
            raise FieldError(
                "must have no control characters but tabs and line ends, "
                f"given U+{ord(character):04X} as character {place}"
            )
    return query


Query = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARACTERS),
    AfterValidator(_no_control_characters),
]


class SearchRequest(Body):
    """A search and its summary: the same fields as a query string and as a JSON body."""

    query: Query = Field(description="What to look for.")
    streaming: bool = Field(
        False, description="Answer as server-sent events; so does Accept: text/event-stream."
    )
    num_results: int = Field(
        DEFAULT_RESULTS, ge=1, le=MAX_RESULTS, description="Most documents to find."
    )
    max_tokens: int = Field(
        DEFAULT_SUMMARY_TOKENS, ge=1, le=MAX_UINT32, description="Most tokens of summary."
    )
    safe_search: bool = Field(False, description="Leave out documents marked as unsafe.")
    model: str = Field("", max_length=500, description="Empty: the only one served.")
    resumable: bool | None = Field(
        None,
        description="Go on for a short time without the client, which may come back with "
        "Last-Event-ID; left out: where the client is an EventSource.",
    )

    def search(self) -> Search:
        """The same for the orchestrator."""
        return Search(
            query=self.query,
            num_results=self.num_results,
            max_tokens=self.max_tokens,
            model=self.model,
            safe_search=self.safe_search,
        )


class SearchResultAnswer(Answer):
    """A document that was found."""

    position: int
    title: str
    url: str
    snippet: str = Field(description="The whole passage; several may be of one document.")
    score: float


class CitationAnswer(Answer):
    """A sentence of the summary and what it cites; offsets count Unicode characters."""

    n: int | None = Field(description="The result's position; null: the sentence cites none.")
    span: tuple[int, int] | None = Field(
        description="What the sentence rests on in the result's snippet; null: unsupported."
    )
    supported: bool
    sentence: tuple[int, int] = Field(description="The sentence in the summary.")


class SearchAnswer(Answer):
    """An answer in one piece."""

    query: str
    status: Literal["completed"]
    search_results: list[SearchResultAnswer]
    summary: str
    citations: list[int] = Field(description="Positions of the results that are cited.")
    citation_details: list[CitationAnswer]
    finish_reason: Literal["stop", "length", "abort"]
    usage: UsageAnswer
    request_id: str
    trace_id: str


class Problem(Answer):
    """Something that a search would be refused for."""

    param: str = Field(description="The field at fault.")
    message: str = Field(description="What is wrong: the field, the limit and the given value.")


class ValidationAnswer(Answer):
    """What the input check says."""

    valid: bool
    query: str | None = Field(description="The query as it would be searched for; null: invalid.")
    problems: list[Problem] = Field(description="One for each field at fault.")
