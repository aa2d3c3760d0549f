"""Bounds of the sampling parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from inference.engine.errors import InvalidSamplingParams
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol import sampling_params as protocol
from mesh.protocol.sampling_params import BOUNDS


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, given 0"),
        ({"temperature": -0.1}, "temperature must be between 0 and 2, given -0.1"),
        ({"temperature": math.nan}, "temperature must be between 0 and 2, given nan"),
        ({"top_p": 0.0}, "top_p must be more than 0 and at most 1, given 0"),
        ({"top_k": -1}, "top_k must be at least 0, given -1"),
        ({"min_p": 1.5}, "min_p must be between 0 and 1, given 1.5"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty must be between 0.01 and 10"),
        ({"presence_penalty": 3.0}, "presence_penalty must be between -2 and 2, given 3"),
        ({"frequency_penalty": -3.0}, "frequency_penalty must be between -2 and 2"),
        ({"seed": 2**64}, "seed must be a 64-bit integer"),
        ({"max_tokens": 2, "min_tokens": 3}, r"min_tokens must be at most max_tokens \(2\)"),
        ({"num_logprobs": 21}, "num_logprobs must be between 0 and 20, given 21"),
        ({"num_prompt_logprobs": 21}, "num_prompt_logprobs must be between 0 and 20, given 21"),
        ({"logit_bias": {5: 101.0}}, r"logit_bias\[5\] must be between -100 and 100"),
        ({"stop_token_ids": frozenset(range(65))}, "stop_token_ids must be at most 64 ids"),
    ],
)
def test_invalid_params_are_rejected_by_name(params: dict[str, Any], message: str) -> None:
    """The message names the field, the limit and the given value."""
    with pytest.raises(InvalidSamplingParams, match=message):
        SamplingParams(**params)


def test_the_engine_has_no_parameters_of_its_own() -> None:
    """Its fields are those of the shared parameters, and every default is a value."""
    shared = {field.name for field in dataclasses.fields(protocol.SamplingParams)}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == shared
    unset = {name for name in BOUNDS if getattr(SamplingParams(), name) is None}
    assert unset == {"max_tokens", "seed", "num_logprobs", "num_prompt_logprobs"}
