"""`/api/v1/search`."""

from __future__ import annotations

import json
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, ValidationInfo

from gateway.schemas.common import MAX_UINT32, Answer, Body, UsageAnswer
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import Search
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol.search import (
    DEFAULT_RESULTS,
    DEFAULT_SUMMARY_TOKENS,
    MAX_QUERY_CHARACTERS,
    MAX_RELATED,
    MAX_RESULTS,
    MAX_SEARCHES,
    MAX_TURN_CHARACTERS,
    MAX_TURNS,
)
from mesh.protocol.summary import Grounded, Turn


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


def _array(value: object, info: ValidationInfo) -> object:
    """An array, which is JSON text in a query string."""
    if info.context is None or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise FieldError(f"must be a JSON array, given {given_value(value)}") from None


class SearchTurnBody(Body):
    """An earlier question of the conversation."""

    query: Query = Field(description="The question.")
    summary: str = Field(
        "", max_length=MAX_TURN_CHARACTERS, description="The summary that answered it."
    )


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
    grounded: Literal["quote", "cite"] | None = Field(
        None,
        description="`quote`: each sentence of the summary is one of a result; `cite`: the model "
        "writes the sentences, and each cites a result. Default: the service's setting.",
    )
    history: Annotated[list[SearchTurnBody], BeforeValidator(_array)] = Field(
        default_factory=list,
        max_length=MAX_TURNS,
        description="Earlier questions of the conversation and their summaries, oldest first; JSON "
        "text in a query string. The query is rewritten so that it can be understood alone.",
    )
    max_searches: int | None = Field(
        None,
        ge=1,
        le=MAX_SEARCHES,
        description="Most queries that the question is split into. Default: 1, or 3 with history.",
    )
    related: int = Field(0, ge=0, le=MAX_RELATED, description="Most related questions to return.")
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

    @property
    def num_statuses(self) -> int:
        """Number of `status` events before the results."""
        if self.history or (self.max_searches or 1) > 1:
            return 2
        return 1 if self.related else 0

    def search(self) -> Search:
        """The search for the orchestrator."""
        return Search(
            query=self.query,
            num_results=self.num_results,
            max_tokens=self.max_tokens,
            model=self.model,
            safe_search=self.safe_search,
            history=tuple(Turn(turn.query, turn.summary) for turn in self.history),
            max_searches=self.max_searches or 0,
            num_related=self.related,
            grounded=None if self.grounded is None else Grounded(self.grounded),
            names=NAMES,
        )


# The conversation of a search has the query in its messages.
NAMES = FieldNames(
    SearchRequest.model_fields, {"messages": "query", "prompt": "query", "num_related": "related"}
)


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
    attributed: bool = Field(
        description="The sentence cites nothing; the result was found to support it."
    )
    sentence: tuple[int, int] = Field(description="Begin and end of the sentence in the summary.")


class SearchAnswer(Answer):
    """The response without streaming."""

    query: str
    status: Literal["completed"]
    search_results: list[SearchResultAnswer]
    summary: str
    citations: list[int] = Field(
        description="Positions of the cited and attributed results, ascending."
    )
    citation_details: list[CitationAnswer]
    nothing_found: bool = Field(
        description="The results do not answer the query, and the summary says so."
    )
    finish_reason: Literal["stop", "length", "abort"]
    usage: UsageAnswer
    request_id: str
    trace_id: str
    trace_sampled: bool = Field(description="Whether the trace is exported.")
    searches: list[str] = Field(
        default_factory=list,
        description="The queries that were searched; only in a conversation.",
    )
    related: list[str] = Field(
        default_factory=list,
        description="Questions that the documents can answer; only if `related` is given.",
    )


class ExamplesAnswer(Answer):
    """Questions that the documents answer."""

    questions: list[str]


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
