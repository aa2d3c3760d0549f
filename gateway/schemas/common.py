"""Schemas and checks that several endpoints share."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.errors import invalid

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


class Body(BaseModel):
    """A request. Unknown fields are ignored and listed in `x-ignored-fields`."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """A response, for OpenAPI only: responses are written as plain dictionaries."""


def only(value: object, accepted: object, field: str) -> None:
    """Raises FieldError unless `value` is the only supported value of `field`."""
    if value != accepted:
        raise FieldError(f"must be {given_value(accepted)}, given {given_value(value)}", field)


def to_json(value: object, field: str) -> str:
    """Encode a parsed JSON value again. Raises MeshError (INVALID_REQUEST)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise invalid(field, f"{field} must not be nested that deeply") from None
    except ValueError:
        raise invalid(field, f"{field} must hold finite numbers, given others") from None


class UsageAnswer(Answer):
    """Token counts of a search."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class PromptTokensDetails(Answer):
    """Prompt tokens by kind."""

    cached_tokens: int


class CompletionTokensDetails(Answer):
    """Completion tokens by kind."""

    reasoning_tokens: int


class OpenAIUsage(Answer):
    """Token counts in OpenAI's format."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ErrorDetails(Answer):
    """The error of a response."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorDetails
