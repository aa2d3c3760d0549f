"""Sampling fields that the generation APIs share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from gateway.schemas.common import MAX_UINT32, MAX_UINT64, Body
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.sampling_params import (
    BOUNDS,
    MAX_STOP_CHARACTERS,
    SamplingParams,
)

MAX_STOP_STRINGS = 4
"""OpenAI's limit."""

MAX_CHOICES = 32
"""Most choices of all prompts together; each is a separate request to the orchestrator."""


def bounded(parameter: str, least: float | None = None) -> FieldInfo:
    """The shared bounds of a sampling parameter, for `Annotated`; `least` replaces the lower."""
    bounds = BOUNDS[parameter]
    field: FieldInfo = Field(
        gt=bounds.least if bounds.excludes_least else None,
        ge=None if bounds.excludes_least else bounds.least if least is None else least,
        le=MAX_UINT32 if bounds.greatest is None else bounds.greatest,
    )
    return field


def check_min_tokens(min_tokens: int, limit_name: str, limit: int | None) -> None:
    """Raises FieldError if `min_tokens` exceeds the limit that the body calls `limit_name`."""
    if limit is not None and min_tokens > limit:
        raise FieldError(
            f"must be at most {limit_name} ({limit}), given {min_tokens}", "min_tokens"
        )


def _stop(value: object) -> object:
    if isinstance(value, str):
        _check_stop_string(value)
        return [value]
    if isinstance(value, list):
        for number, each in enumerate(value[: MAX_STOP_STRINGS + 1]):
            if isinstance(each, str):
                _check_stop_string(each, number)
    return value


def _check_stop_string(text: str, *path: int) -> None:
    if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
        limit = f"must have 1 to {MAX_STOP_CHARACTERS} characters"
        raise FieldError(f"{limit}, given {len(text)}", *path)


def _logit_bias(value: object) -> object:
    if not isinstance(value, dict):
        return value
    for key in value:
        digits = isinstance(key, str) and key.isascii() and key.isdecimal()
        if not digits or len(key) > 10 or int(key) > MAX_UINT32:
            raise FieldError(f"must have token ids as its keys, given {given_value(key)}")
    return {int(key): bias for key, bias in value.items()}


Stop = Annotated[
    list[str],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(_stop, json_schema_input_type=str | list[str]),
]
"""A string or a list of them."""

LogitBias = Annotated[
    dict[int, Annotated[float, bounded("logit_bias")]],
    BeforeValidator(_logit_bias, json_schema_input_type=dict[str, float]),
]


ServiceTier: TypeAlias = Literal["auto", "default", "flex", "scale", "priority", "standard_only"]
"""Tiers of OpenAI and Anthropic."""


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool = Field(
        default=False, description="Send one more chunk with the usage before `[DONE]`."
    )


class SamplingParameters(Body):
    """OpenAI's sampling parameters, and vLLM's names for those that OpenAI does not have.

    An absent parameter has the served model's default (generation_config.json), or
    else the default named here.
    """

    model: str = Field(
        "",
        max_length=500,
        description="Name of a served model, as /v1/models lists it. May be empty if one is "
        "served.",
    )
    temperature: Annotated[float | None, bounded("temperature")] = Field(
        None, description="Softmax temperature; 0 is greedy decoding. Default 1."
    )
    top_p: Annotated[float | None, bounded("top_p")] = Field(
        None, description="Nucleus sampling: probability mass of the tokens kept. Default 1."
    )
    top_k: Annotated[int | None, bounded("top_k", least=-1)] = Field(
        None, description="Number of most likely tokens kept; 0 or -1 keeps all. Default 0."
    )
    min_p: Annotated[float | None, bounded("min_p")] = Field(
        None,
        description="Least probability of a token, relative to the most likely one. Default 0.",
    )
    seed: Annotated[int | None, bounded("seed")] = Field(
        None,
        description="Random seed: the same seed and prompt yield the same text. Choice i of a "
        "prompt uses seed + i. Default: random.",
    )
    # A factory is cheaper than the copy that pydantic makes of a default list or object; the
    # default is repeated for OpenAPI.
    stop: Stop = Field(
        default_factory=list,
        description="One string or up to 4 that end the text; they are not part of it.",
        json_schema_extra={"default": []},
    )
    presence_penalty: Annotated[float | None, bounded("presence_penalty")] = Field(
        None, description="Subtracted from the logit of each token in the completion. Default 0."
    )
    frequency_penalty: Annotated[float | None, bounded("frequency_penalty")] = Field(
        None, description="Subtracted for each occurrence of a token in the completion. Default 0."
    )
    repetition_penalty: Annotated[float | None, bounded("repetition_penalty")] = Field(
        None,
        description="Divides (or multiplies) the logits of tokens in prompt and completion; 1 "
        "is off. Default 1.",
    )
    logit_bias: LogitBias = Field(
        default_factory=dict,
        description="Added to the logit of each token id, -100 to 100.",
        json_schema_extra={"default": {}},
    )
    ignore_eos: bool = Field(
        False, description="Continue past the model's end-of-sequence tokens up to max_tokens."
    )
    min_tokens: Annotated[int, bounded("min_tokens")] = Field(
        0, description="Tokens before which no end-of-sequence or stop token is sampled."
    )
    priority: Annotated[int, bounded("priority")] = Field(
        0,
        description="Lower ones start earlier where requests wait for an engine. A key may have "
        "a lower bound, 0 by default.",
    )
    service_tier: ServiceTier | None = Field(
        None, description="Accepted for compatibility: there is one tier."
    )
    stream: bool = Field(False, description="Respond with server-sent events.")
    user: str | None = Field(None, description="Accepted for compatibility; ignored.")

    def sampling(
        self,
        choice: int,
        *,
        max_tokens: int | None,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None = None,
        constraint: OutputConstraint | None = None,
    ) -> SamplingParams:
        """The parameters for the orchestrator, for choice number `choice` of a prompt."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            # OpenAI's seeds are signed.
            seed=None if self.seed is None else (self.seed + choice) & MAX_UINT64,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            num_logprobs=num_logprobs,
            num_prompt_logprobs=num_prompt_logprobs,
            priority=self.priority,
            constraint=constraint,
        )


class SamplingFields(SamplingParameters):
    """The fields of chat and text completions alone."""

    max_tokens: Annotated[int | None, bounded("max_tokens")] = Field(
        None, description="Most tokens to generate; default: as many as the context has room for."
    )
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="Choices to generate for each prompt.")
    stream_options: StreamOptions = StreamOptions()
