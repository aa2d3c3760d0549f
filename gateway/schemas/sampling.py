"""How to draw, in the words that chat and completions share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

from gateway.schemas.common import MAX_UINT32, MAX_UINT64, Body
from gateway.validation.field_error import FieldError
from gateway.validation.problems import given_value
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.sampling_params import BOUNDS, MAX_STOP_STRINGS, SamplingParams

MAX_CHOICES = 32
"""Of all prompts of a request together: each takes a place of its own behind the gateway."""


def bounded(parameter: str, least: float | None = None) -> FieldInfo:
    """The shared bounds of a sampling parameter, for `Annotated`; `least` replaces the lower."""
    bounds = BOUNDS[parameter]
    field: FieldInfo = Field(
        gt=bounds.least if bounds.excludes_least else None,
        ge=None if bounds.excludes_least else bounds.least if least is None else least,
        le=MAX_UINT32 if bounds.greatest is None else bounds.greatest,
    )
    return field


def _stop(value: object) -> object:
    strings = [value] if isinstance(value, str) else value
    if isinstance(strings, list) and "" in strings:
        raise FieldError("must not hold an empty string")
    return strings


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


class StreamOptions(Body):
    """How a stream looks."""

    include_usage: bool = Field(
        default=False, description="Send the usage in a last chunk of its own."
    )


class SamplingFields(Body):
    """How to draw, in OpenAI's words and, for what OpenAI does not have, in vLLM's."""

    model: str = Field("", max_length=500, description="Empty: the only one served.")
    max_tokens: Annotated[int | None, bounded("max_tokens")] = None
    temperature: Annotated[float | None, bounded("temperature")] = None
    top_p: Annotated[float | None, bounded("top_p")] = None
    top_k: Annotated[int | None, bounded("top_k", least=-1)] = Field(
        None, description="0 or -1: all."
    )
    min_p: Annotated[float | None, bounded("min_p")] = None
    seed: Annotated[int | None, bounded("seed")] = Field(
        None,
        description="Same seed, same text. Choice number i of a prompt is drawn with seed + i.",
    )
    # Lists and objects are made anew, which takes less than the copy that pydantic makes of a
    # default, and OpenAPI is told of them by hand.
    stop: Stop = Field(
        default_factory=list,
        description="A string or up to 4; none is part of the text.",
        json_schema_extra={"default": []},
    )
    presence_penalty: Annotated[float | None, bounded("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, bounded("frequency_penalty")] = None
    repetition_penalty: Annotated[float | None, bounded("repetition_penalty")] = None
    logit_bias: LogitBias = Field(
        default_factory=dict,
        description="Token id to bias, -100 to 100.",
        json_schema_extra={"default": {}},
    )
    ignore_eos: bool = False
    min_tokens: Annotated[int, bounded("min_tokens")] = 0
    n: int = Field(1, ge=1, le=MAX_CHOICES, description="Choices to generate, for each prompt.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = Field(None, description="Taken, and used for nothing.")

    def sampling(
        self,
        choice: int,
        *,
        max_tokens: int | None,
        num_logprobs: int | None,
        num_prompt_logprobs: int | None = None,
        constraint: OutputConstraint | None = None,
    ) -> SamplingParams:
        """The same for the orchestrator, for choice number `choice` of a prompt."""
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
            constraint=constraint,
        )
