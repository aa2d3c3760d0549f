"""`/api/v1/search`."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from gateway.schemas.common import MAX_UINT32, Answer, Body, UsageAnswer
from gateway.upstream.field_names import FieldNames
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

    query: Query = Field(description="The search query, 1 to 500 characters.")
    streaming: bool = Field(
        False,
        description="Respond with server-sent events, as does `Accept: text/event-stream`.",
    )
    num_results: int = Field(
        DEFAULT_RESULTS, ge=1, le=MAX_RESULTS, description="Most results to return."
    )
    max_tokens: int = Field(
        DEFAULT_SUMMARY_TOKENS, ge=1, le=MAX_UINT32, description="Most tokens of the summary."
    )
    safe_search: bool = Field(False, description="Leave out documents that are marked as unsafe.")
    model: str = Field(
        "",
        max_length=500,
        description="Name of a served model, as /v1/models lists it. May be empty if one is "
        "served.",
    )
    resumable: bool | None = Field(
        None,
        description="Continue for a short time after a disconnect, so that the client can "
        "resume with Last-Event-ID. Default: true for an EventSource.",
    )

    def search(self) -> Search:
        """The search for the orchestrator."""
        return Search(
            query=self.query,
            num_results=self.num_results,
            max_tokens=self.max_tokens,
            model=self.model,
            safe_search=self.safe_search,
            names=NAMES,
        )


# The conversation of a search has the query in its messages.
NAMES = FieldNames(SearchRequest.model_fields, {"messages": "query", "prompt": "query"})


class SearchResultAnswer(Answer):
    """A passage that was found."""

    position: int
    title: str
    url: str
    snippet: str = Field(
        description="The whole passage; several results may come from one document."
    )
    score: float


class CitationAnswer(Answer):
    """A sentence of the summary and its source; offsets count Unicode code points."""

    n: int | None = Field(
        description="Position of the cited result; null if the sentence cites none."
    )
    span: tuple[int, int] | None = Field(
        description="The supporting part of the result's snippet; null if there is none."
    )
    supported: bool
    sentence: tuple[int, int] = Field(description="Begin and end of the sentence in the summary.")


class SearchAnswer(Answer):
    """The response without streaming."""

    query: str
    status: Literal["completed"]
    search_results: list[SearchResultAnswer]
    summary: str
    citations: list[int] = Field(description="Positions of the cited results, ascending.")
    citation_details: list[CitationAnswer]
    finish_reason: Literal["stop", "length", "abort"]
    usage: UsageAnswer
    request_id: str
    trace_id: str
    trace_sampled: bool = Field(description="Whether the trace is exported.")


class Problem(Answer):
    """A reason to reject the search."""

    param: str = Field(description="The field at fault.")
    message: str = Field(description="The field, the limit and the given value.")


class ValidationAnswer(Answer):
    """The result of the validation."""

    valid: bool
    query: str | None = Field(
        description="The query as it would be searched for; null if it is invalid."
    )
    problems: list[Problem] = Field(description="One problem for each invalid field.")
