"""The responses of the Messages API, for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gateway.schemas.common import Answer


class OutputTokensDetails(Answer):
    """Output tokens by kind."""

    thinking_tokens: int


class MessageUsage(Answer):
    """Token counts; the prompt has `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int = Field(description="Prompt tokens that were computed.")
    cache_creation_input_tokens: int = Field(description="0: caching has no separate count.")
    cache_read_input_tokens: int = Field(description="Prompt tokens from the prefix cache.")
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


class ContentBlock(Answer):
    """A part of the answer; the other fields depend on the type."""

    type: Literal["text", "thinking", "tool_use"]
    text: str = Field("", description="Of type text.")
    thinking: str = Field("", description="Of type thinking.")
    signature: str = Field("", description="Of type thinking: SHA-256 of its text, hexadecimal.")
    id: str = Field("", description="Of type tool_use.")
    name: str = Field("", description="Of type tool_use.")
    input: dict[str, Any] = Field({}, description="Of type tool_use.")


class Message(Answer):
    """The response without streaming."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ContentBlock]
    stop_reason: Literal[
        "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
    ]
    stop_sequence: str | None
    usage: MessageUsage


class TokensCount(Answer):
    """The number of tokens of a request."""

    input_tokens: int


class AnthropicErrorDetails(Answer):
    """The error of a response."""

    type: str
    message: str


class AnthropicError(Answer):
    """The body of every error of this API."""

    type: Literal["error"]
    error: AnthropicErrorDetails
    request_id: str | None
