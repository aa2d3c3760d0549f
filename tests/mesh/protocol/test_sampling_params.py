"""The shared sampling parameters agree with the contract and keep to their bounds."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.constraints import ConstraintForm, OutputConstraint
from mesh.protocol.sampling_params import (
    BOUNDS,
    SamplingParams,
    first_violation,
    sampling_from_proto,
    sampling_to_proto,
)
from mesh.v1 import common_pb2

VALUES: dict[str, Any] = {
    "max_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 40,
    "min_p": 0.125,
    "seed": 2**64 - 1,
    "repetition_penalty": 1.5,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.75,
    "logit_bias": {3: -1.5, 2**32 - 1: 100.0},
    "stop_token_ids": frozenset({1, 2}),
    "ignore_eos": True,
    "min_tokens": 2,
    "num_logprobs": 0,
    "priority": -3,
    "num_prompt_logprobs": 20,
    "constraint": OutputConstraint(ConstraintForm.REGEX, "a+"),
}
"""A value other than the default for each field."""

NUMERIC = {name: bounds for name, bounds in BOUNDS.items() if name != "logit_bias"}


def test_every_field_of_the_contract_is_a_parameter() -> None:
    """common.proto's SamplingParams and the dataclass have the same fields."""
    contract = [field.name for field in common_pb2.SamplingParams.DESCRIPTOR.fields]
    parameters = [field.name for field in dataclasses.fields(SamplingParams)]
    assert set(parameters) == set(contract) == set(VALUES)


def test_every_number_has_bounds() -> None:
    """A field of the contract that is a number, or a map to numbers, is in the table."""
    fields = common_pb2.SamplingParams.DESCRIPTOR.fields
    others = {"stop_token_ids", "ignore_eos", "constraint"}
    assert set(BOUNDS) == {field.name for field in fields} - others


@pytest.mark.parametrize("name", VALUES)
def test_each_field_survives_protobuf(name: str) -> None:
    """Encoded to bytes and back, a field has the same value and the others are unset."""
    params = SamplingParams(**{name: VALUES[name]})
    data = sampling_to_proto(params).SerializeToString()
    assert sampling_from_proto(common_pb2.SamplingParams.FromString(data)) == params


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed", "num_logprobs", "min_p"])
def test_zero_is_not_unset(name: str) -> None:
    """A field that is set to 0 arrives as 0; one that is not set arrives as None."""
    received = sampling_from_proto(sampling_to_proto(SamplingParams(**{name: 0})))
    assert getattr(received, name) == 0
    assert getattr(sampling_from_proto(sampling_to_proto(SamplingParams())), name) is None


@pytest.mark.parametrize(("name", "bounds"), NUMERIC.items())
def test_a_value_outside_of_its_bounds_is_named(name: str, bounds: Any) -> None:
    """The limits themselves are allowed unless excluded; the message has limit and value."""
    least, greatest = bounds.least, bounds.greatest
    for allowed in (least + bounds.excludes_least, 2**32 - 1 if greatest is None else greatest):
        assert first_violation(SamplingParams(**{name: allowed})) is None
    refused = [least - 1, math.nan, *([least] if bounds.excludes_least else [])]
    for value in [*refused, *([] if greatest is None else [greatest + 1])]:
        violation = first_violation(SamplingParams(**{name: value}))
        assert violation is not None
        given = f"{value:g}" if isinstance(value, float) else str(value)
        assert violation.message == f"{name} must be {bounds.limit}, given {given}"


@pytest.mark.parametrize(("name", "bounds"), NUMERIC.items())
def test_a_limit_is_allowed_after_protobuf(name: str, bounds: Any) -> None:
    """The wire has float32: 0.01 arrives as 0.0099999998."""
    least = bounds.least + bounds.excludes_least
    if name != "seed":  # the gateway sends it modulo 2**64
        sent = sampling_to_proto(SamplingParams(**{name: least}))
        assert first_violation(sampling_from_proto(sent)) is None


@pytest.mark.parametrize("form", ConstraintForm)
def test_each_form_of_a_constraint_survives_protobuf(form: ConstraintForm) -> None:
    """The form is the name of the field that is set."""
    text = "" if form is ConstraintForm.JSON_OBJECT else "text"
    params = SamplingParams(constraint=OutputConstraint(form, text))
    message = sampling_to_proto(params)
    assert message.constraint.WhichOneof("form") == form
    assert sampling_from_proto(message) == params


@pytest.mark.parametrize(
    "message", [common_pb2.OutputConstraint(), common_pb2.OutputConstraint(json_object=False)]
)
def test_a_constraint_without_a_form_is_refused(message: common_pb2.OutputConstraint) -> None:
    """The message lists the forms."""
    limit = "one of json_schema, json_object, regex, grammar, given none"
    with pytest.raises(MeshError, match=limit) as caught:
        sampling_from_proto(common_pb2.SamplingParams(constraint=message))
    assert caught.value.kind is ErrorKind.INVALID_REQUEST
    assert caught.value.param == "constraint"
