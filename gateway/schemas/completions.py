"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gateway.generation import Generation, TokenIds
from gateway.schemas.common import (
    MAX_LOGPROBS,
    MAX_UINT32,
    Answer,
    OpenAIUsage,
    SamplingFields,
    only,
)
from gateway.validation import given_value


def _prompt(value: object) -> str | tuple[int, ...]:
    """Text, or ids, or a list with one of either."""
    if isinstance(value, list) and value and isinstance(value[0], str | list):
        if len(value) > 1:
            raise ValueError(f"FIELD must be one prompt, given {len(value)}")
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"FIELD must be text or token ids, given {given_value(value)}")
    if not value:
        raise ValueError("FIELD must have at least 1 token id, given 0")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_UINT32:
            raise ValueError(
                f"FIELD must hold token ids from 0 to {MAX_UINT32}, given {given_value(each)}"
            )
    return tuple(value)


class CompletionRequest(SamplingFields):
    """A prompt to be continued as it stands."""

    prompt: Annotated[
        str | tuple[int, ...],
        BeforeValidator(_prompt, json_schema_input_type=str | list[int] | list[str]),
    ] = Field(description="Text, or token ids.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = Field(False, description="Only false.")
    best_of: int = Field(1, description="Only 1.")
    suffix: str = Field("", description="Only empty.")

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        only(self.n, 1, "n")
        only(self.best_of, 1, "best_of")
        only(self.echo, False, "echo")
        only(self.suffix, "", "suffix")
        return self

    def generation(self) -> Generation:
        """The same for the orchestrator."""
        prompt = self.prompt
        return Generation(
            model=self.model,
            prompt=prompt if isinstance(prompt, str) else TokenIds(prompt),
            sampling=self.sampling(self.max_tokens, self.logprobs),
            stop=tuple(self.stop),
        )


class CompletionChoice(Answer):
    """The one answer."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    """An answer in one piece."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: OpenAIUsage
