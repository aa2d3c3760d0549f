"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, PlainValidator, model_validator

from gateway.schemas.common import MAX_UINT32, Answer, OpenAIUsage, only
from gateway.schemas.sampling import MAX_CHOICES, SamplingFields, bounded, check_min_tokens
from gateway.upstream.field_names import FieldNames
from gateway.upstream.generation import Generation
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol.tokens import TokenIds

Prompt: TypeAlias = str | tuple[int, ...]


class Prompts(NamedTuple):
    """One prompt, or the prompts of a list."""

    items: list[Prompt]
    is_list: bool

    def path(self, field: str, number: int) -> str:
        """The path of prompt `number` in a body that has the prompts in `field`."""
        return f"{field}[{number}]" if self.is_list else field


def _prompts(value: object) -> Prompts:
    """One prompt or a list of prompts, each text or token ids."""
    return parse_prompts(value, MAX_CHOICES)


def parse_prompts(value: object, most: int) -> Prompts:
    """`value` as texts and token ids. Raises FieldError."""
    if isinstance(value, str):
        return Prompts([value], is_list=False)
    if not isinstance(value, list):
        raise FieldError(f"must be text or token ids, given {given_value(value)}")
    if not value:
        raise FieldError("must have at least 1 token id, given 0")
    if not isinstance(value[0], str | list):
        return Prompts([_token_ids(value)], is_list=False)
    if len(value) > most:
        raise FieldError(f"must have at most {most} prompts, given {len(value)}")
    prompts: list[Prompt] = []
    for number, each in enumerate(value):
        prompts.append(each if isinstance(each, str) else _token_ids(each, number))
    return Prompts(prompts, is_list=True)


def _token_ids(value: object, *path: int) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise FieldError(f"must be text or token ids, given {given_value(value)}", *path)
    if not value:
        raise FieldError("must have at least 1 token id, given 0", *path)
    for number, each in enumerate(value):
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_UINT32:
            requirement = f"must be a token id from 0 to {MAX_UINT32}, given {given_value(each)}"
            raise FieldError(requirement, *path, number)
    return tuple(value)


class CompletionRequest(SamplingFields):
    """Prompts that are continued without a chat template."""

    prompt: Annotated[
        Prompts,
        PlainValidator(
            _prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ] = Field(description="Text, token ids, or a list of up to 32 of either.")
    max_tokens: int | None = Field(
        None,
        le=MAX_UINT32,
        description="Most tokens to generate; default: as many as the context has room for. 0 "
        "is allowed with echo only and returns the prompt alone.",
        json_schema_extra={"minimum": 0},
    )
    logprobs: Annotated[int | None, bounded("num_logprobs")] = Field(
        None,
        description="Return the log probability of each token and of this many alternatives.",
    )
    echo: bool = Field(
        False, description="Return the prompt before the text; with logprobs, those of its tokens."
    )
    best_of: int | None = Field(None, description="Must equal n.")
    suffix: str = Field("", description="Not supported: must be empty.")

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.best_of is not None:
            only(self.best_of, self.n, "best_of")
        least = 0 if self.echo else 1
        if self.max_tokens is not None and self.max_tokens < least:
            raise FieldError(f"must be at least {least}, given {self.max_tokens}", "max_tokens")
        check_min_tokens(self.min_tokens, "max_tokens", self.max_tokens)
        num_choices = self.n * len(self.prompt.items)
        if num_choices > MAX_CHOICES:
            raise FieldError(
                f"must give at most {MAX_CHOICES} choices together with the prompts, "
                f"given {num_choices}",
                "n",
            )
        only(self.suffix, "", "suffix")
        return self

    def generations(self) -> list[Generation]:
        """The generations for the orchestrator: n for the first prompt, n for the next."""
        return [
            Generation(
                model=self.model,
                prompt=prompt if isinstance(prompt, str) else TokenIds(prompt),
                sampling=self.sampling(
                    choice,
                    # The orchestrator generates at least one token, which is not returned.
                    max_tokens=1 if self.max_tokens == 0 else self.max_tokens,
                    num_logprobs=self.logprobs,
                    num_prompt_logprobs=self.logprobs if self.echo else None,
                ),
                stop=tuple(self.stop),
                echo=self.echo,
                names=NAMES.and_also({"prompt": self.prompt.path("prompt", number)}),
            )
            for number, prompt in enumerate(self.prompt.items)
            for choice in range(self.n)
        ]


NAMES = FieldNames(
    CompletionRequest.model_fields,
    {"num_logprobs": "logprobs", "num_prompt_logprobs": "logprobs"},
)


class CompletionChoice(Answer):
    """One choice."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    """The response without streaming."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: OpenAIUsage
