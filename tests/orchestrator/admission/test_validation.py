"""Validation of requests, on both sides of each bound."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.sampling_params import SamplingParams
from orchestrator.admission.validation import (
    check_min_tokens,
    check_num_results,
    check_query,
    check_sampling,
    check_stop,
    choose_model,
    room_for_completion,
    with_context_length,
)
from orchestrator.generation import ModelInfo

GOOD: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 2.0},
    {"top_p": 1e-6},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"repetition_penalty": 10.0},
    {"num_logprobs": 0},
    {"num_logprobs": 20},
    {"max_tokens": 1},
    {"logit_bias": {3: -100.0, 4: 100.0}},
]

BAD: list[tuple[str, Any, str]] = [
    ("temperature", -0.1, "temperature must be between 0 and 2, given -0.1"),
    ("temperature", 2.1, "temperature must be between 0 and 2, given 2.1"),
    ("temperature", math.nan, "temperature must be between 0 and 2, given nan"),
    ("top_p", 0.0, "top_p must be more than 0 and at most 1, given 0"),
    ("top_p", 1.1, "top_p must be more than 0 and at most 1, given 1.1"),
    ("min_p", -0.5, "min_p must be between 0 and 1, given -0.5"),
    ("presence_penalty", 2.5, "presence_penalty must be between -2 and 2, given 2.5"),
    ("frequency_penalty", -2.5, "frequency_penalty must be between -2 and 2, given -2.5"),
    ("repetition_penalty", 0.0, "repetition_penalty must be between 0.01 and 10"),
    ("repetition_penalty", math.inf, "and 10, given inf"),
    ("num_logprobs", 21, "num_logprobs must be between 0 and 20, given 21"),
    ("max_tokens", 0, "max_tokens must be at least 1, given 0"),
    ("logit_bias", {9: math.nan}, "logit_bias[9] must be between -100 and 100, given nan"),
    ("logit_bias", {9: -101.0}, "given -101"),
]


@pytest.mark.parametrize("fields", GOOD)
def test_bounds_are_allowed(fields: dict[str, Any]) -> None:
    """The bounds themselves and absent fields are valid."""
    check_sampling(SamplingParams(**fields))


@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_values_out_of_bounds_are_refused(name: str, value: Any, message: str) -> None:
    """The message names the field, the limit and the value."""
    with pytest.raises(MeshError) as caught:
        check_sampling(SamplingParams(**{name: value}))
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == name
    assert message in caught.value.message


def test_stop_strings_have_a_number_and_a_length() -> None:
    """At most 4, each of 1 to 256 characters; the message has the index of the invalid one."""
    check_stop([])
    check_stop(["a", "b", "c", "d" * 256])
    for stop, param, message in [
        (["x"] * 17, "stop", "at most 16 strings, given 17"),
        (["a", ""], "stop[1]", r"stop\[1\] must have 1 to 256 characters, given 0"),
        (["a" * 257], "stop[0]", r"stop\[0\] must have 1 to 256 characters, given 257"),
    ]:
        with pytest.raises(MeshError, match=message) as caught:
            check_stop(stop)
        assert caught.value.param == param


def test_queries_are_trimmed_before_they_are_measured() -> None:
    """White space around a query does not count."""
    assert check_query("  fox \n") == "fox"
    assert check_query(" " * 600 + "a" * 500) == "a" * 500
    for query in ("", " \t\n", "a" * 501):
        with pytest.raises(MeshError, match="1 to 500 characters"):
            check_query(query)


def test_the_number_of_results_has_a_default() -> None:
    """0 means that the field is absent."""
    assert [check_num_results(number) for number in (0, 1, 20)] == [5, 1, 20]
    with pytest.raises(MeshError, match="given 21"):
        check_num_results(21)


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "room"),
    [(60, None, 40), (60, 40, 40), (60, 1, 1), (99, None, 1), (0, 100, 100)],
)
def test_tokens_that_fit_the_context(prompt_tokens: int, max_tokens: int | None, room: int) -> None:
    """max_tokens, or by default the rest of the context."""
    assert room_for_completion(prompt_tokens, max_tokens, ModelInfo("m", 100), "prompt") == room


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "param", "given"),
    [
        (100, None, "messages", "your messages resulted in 100 tokens, and the completion needs"),
        (150, 5, "messages", "you requested 155 tokens (150 in the messages, 5 in the completion)"),
        (60, 41, "max_tokens", "you requested 101 tokens (60 in the messages, 41 in the"),
        (100, 1, "prompt", "you requested 101 tokens (100 in the prompt, 1 in the completion)"),
    ],
)
def test_tokens_that_do_not_fit_the_context(
    prompt_tokens: int, max_tokens: int | None, param: str, given: str
) -> None:
    """The error is OpenAI's; its field is the prompt's if that leaves no room, else max_tokens."""
    field = "prompt" if param == "prompt" else "messages"
    with pytest.raises(MeshError) as caught:
        room_for_completion(prompt_tokens, max_tokens, ModelInfo("m", 100), field)
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG
    assert caught.value.param == param
    beginning = "This model's maximum context length is 100 tokens. However, "
    assert caught.value.message.startswith(beginning + given)


def test_the_tokenizers_limit_is_reported_with_the_context_length() -> None:
    """Too many characters are a prompt that is too long; other errors are unchanged."""
    model = ModelInfo("m", 100)
    too_long = MeshError(
        ErrorKind.CONTEXT_TOO_LONG, "prompt must be at most 9 characters, given 10"
    )
    message = with_context_length(too_long.renamed("prompt"), model).message
    assert message == (
        "This model's maximum context length is 100 tokens. However, prompt must be at most 9 "
        "characters, given 10."
    )
    other = MeshError(ErrorKind.INVALID_REQUEST, "no")
    assert with_context_length(other, model) is other


def test_min_tokens_must_fit_the_context() -> None:
    """Without max_tokens the room that the prompt leaves is the limit."""
    check_min_tokens(40, 40)
    with pytest.raises(MeshError, match="min_tokens must be at most the 40 tokens") as caught:
        check_min_tokens(41, 40)
    assert caught.value.param == "min_tokens"


def test_a_model_is_chosen_by_name() -> None:
    """No name is the only model; with several models it is refused. Errors list the models."""
    served = [ModelInfo("zebra", 1), ModelInfo("ant", 2)]
    assert choose_model("zebra", served).name == "zebra"
    assert choose_model("", served[:1]).name == "zebra"
    with pytest.raises(MeshError, match="model must be one of ant, zebra, given none") as caught:
        choose_model("", served)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "model"
    with pytest.raises(MeshError, match="served models: ant, zebra") as caught:
        choose_model("Ant", served)
    assert caught.value.kind is ErrorKind.MODEL_NOT_FOUND
    assert caught.value.param == "model"
