"""Fields that more than one endpoint has."""

from __future__ import annotations

import json

from pydantic import BaseModel, ConfigDict

from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.errors import invalid

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


class Body(BaseModel):
    """A request; unknown fields are ignored, as OpenAI's clients send what they like."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Answer(BaseModel):
    """An answer, for OpenAPI; answers are written as plain dictionaries."""


def only(value: object, accepted: object, field: str) -> None:
    """Raises FieldError unless `value` is the only supported value of `field`."""
    if value != accepted:
        raise FieldError(f"must be {given_value(accepted)}, given {given_value(value)}", field)


def to_json(value: object, field: str) -> str:
    """`value`, which came out of JSON, as JSON again. Raises MeshError (INVALID_REQUEST)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise invalid(field, f"{field} must not be nested that deeply") from None
    except ValueError:
        raise invalid(field, f"{field} must hold finite numbers, given others") from None


class UsageAnswer(Answer):
    """Tokens of a search."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class PromptTokensDetails(Answer):
    """What of the prompt was reused."""

    cached_tokens: int


class CompletionTokensDetails(Answer):
    """What of the completion was thinking."""

    reasoning_tokens: int


class OpenAIUsage(Answer):
    """Tokens, as OpenAI counts them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ErrorDetails(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """The body of every error."""

    error: ErrorDetails
