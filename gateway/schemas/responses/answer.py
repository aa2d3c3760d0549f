"""The response object, for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.schemas.common import Answer


class UrlCitation(Answer):
    """A source that supports a sentence of the text; offsets count Unicode code points."""

    type: Literal["url_citation"]
    start_index: int = Field(description="Begin of the citation, such as [1], in the text.")
    end_index: int
    url: str
    title: str


class OutputText(Answer):
    """The text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[UrlCitation]
    logprobs: list[dict[str, Any]]


class OutputMessage(Answer):
    """A message of the assistant."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class OutputFunctionCall(Answer):
    """A call of a function."""

    type: Literal["function_call"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    call_id: str
    name: str
    arguments: str


class ReasoningText(Answer):
    """The text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(Answer):
    """Reasoning of a model that writes it between tags."""

    type: Literal["reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[dict[str, Any]]
    content: list[ReasoningText]


class OutputWebSearch(Answer):
    """A search."""

    type: Literal["web_search_call"]
    id: str
    status: Literal["in_progress", "completed", "failed"]
    action: dict[str, Any]


class OutputFileSearch(Answer):
    """A search, in the form of file_search."""

    type: Literal["file_search_call"]
    id: str
    status: Literal["in_progress", "completed", "failed"]
    queries: list[str]
    results: list[dict[str, Any]] | None


class InputTokensDetails(Answer):
    """Input tokens by kind."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Answer):
    """Output tokens by kind."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """Token counts of all generations of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Answer):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Answer):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(Answer):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    model: str
    output: list[
        OutputMessage | OutputFunctionCall | OutputReasoning | OutputWebSearch | OutputFileSearch
    ]
    usage: ResponseUsage | None
    store: bool = Field(description="Whether the response can be continued by its id.")
    instructions: str | None
    previous_response_id: str | None
    background: bool
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    service_tier: Literal["default"]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["auto", "disabled"]
    user: str | None


class InputItemList(Answer):
    """A page of the items that a response was generated from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(Answer):
    """The result of a deletion."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]
