"""Validation of requests, on both sides of each bound."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.sampling_params import SamplingParams
from orchestrator.admission.validation import (
    check_num_results,
    check_query,
    check_sampling,
    check_stop,
    choose_model,
    room_for_completion,
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
    ("num_logprobs", 21, "top_logprobs must be between 0 and 20, given 21"),
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
    """The message names the field of the public API, the limit and the value."""
    with pytest.raises(MeshError) as caught:
        check_sampling(SamplingParams(**{name: value}))
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == ("top_logprobs" if name == "num_logprobs" else name)
    assert message in caught.value.message


def test_stop_strings_have_a_number_and_a_length() -> None:
    """At most 4, each of 1 to 256 characters; the message has the index of the invalid one."""
    check_stop([])
    check_stop(["a", "b", "c", "d" * 256])
    for stop, message in [
        (["x"] * 5, "at most 4 strings, given 5"),
        (["a", ""], r"stop\[1\] must have 1 to 256 characters, given 0"),
        (["a" * 257], r"stop\[0\] must have 1 to 256 characters, given 257"),
    ]:
        with pytest.raises(MeshError, match=message) as caught:
            check_stop(stop)
        assert caught.value.param == "stop"


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
    ("prompt_tokens", "max_tokens", "param"),
    [(100, None, "messages"), (150, 5, "messages"), (60, 41, "max_tokens"), (100, 1, "prompt")],
)
def test_tokens_that_do_not_fit_the_context(
    prompt_tokens: int, max_tokens: int | None, param: str
) -> None:
    """The error names the prompt's field if it leaves no room at all, else max_tokens."""
    field = "prompt" if param == "prompt" else "messages"
    with pytest.raises(MeshError, match=f"is 100 tokens; the prompt has {prompt_tokens}") as caught:
        room_for_completion(prompt_tokens, max_tokens, ModelInfo("m", 100), field)
    assert caught.value.kind is ErrorKind.CONTEXT_TOO_LONG
    assert caught.value.param == param


def test_a_model_is_chosen_by_name() -> None:
    """No name is the only model; with several models it is refused. Errors list the models."""
    served = [ModelInfo("zebra", 1), ModelInfo("ant", 2)]
    assert choose_model("zebra", served).name == "zebra"
    assert choose_model("", served[:1]).name == "zebra"
    with pytest.raises(MeshError, match="model must be one of ant, zebra, given none") as caught:
        choose_model("", served)
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "model"
    with pytest.raises(MeshError, match="no model 'Ant' is served; there is ant, zebra") as caught:
        choose_model("Ant", served)
    assert caught.value.kind is ErrorKind.MODEL_NOT_FOUND
    assert caught.value.param == "model"
