"""Sampling parameters: the fields, their bounds, and their mapping to and from protobuf.

A new parameter is a field in common.proto, a field and its bounds here, and a field of the
gateway's schemas; then the code that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, NamedTuple

from mesh.protocol.constraints import OutputConstraint, constraint_from_proto, constraint_to_proto
from mesh.v1 import common_pb2

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_STOP_TOKEN_IDS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
"""Longest stop string."""

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are sampled. None: the served model's default. Bounds: `BOUNDS`.

    The names are those of `SamplingParams` in common.proto, which describes each.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    priority: int = 0
    constraint: OutputConstraint | None = None

    def end_token_ids(self, eos_token_ids: frozenset[int]) -> frozenset[int]:
        """Ids that end the generation, for a model with these end-of-sequence tokens."""
        if self.ignore_eos and self.constraint is None:
            return self.stop_token_ids
        return eos_token_ids | self.stop_token_ids


class Bounds(NamedTuple):
    """The values that a numeric parameter may have."""

    least: float
    greatest: float | None = None
    """None: as much as the field's type on the wire can hold."""
    excludes_least: bool = False
    description: str = ""
    """Replaces "between … and …" in messages."""

    def allow(self, value: float) -> bool:
        """Whether the value is within the bounds; NaN is not."""
        if self.excludes_least:
            above = self.least < value
        else:  # a float32 of the wire may be less than the bound that it was rounded from
            above = self.least <= value or (
                isinstance(value, float) and math.isclose(value, self.least, rel_tol=1e-7)
            )
        return above and (self.greatest is None or value <= self.greatest)

    @property
    def limit(self) -> str:
        """As in "temperature must be …"."""
        if self.description:
            return self.description
        if self.greatest is None:
            return f"at least {self.least:g}"
        if self.excludes_least:
            return f"more than {self.least:g} and at most {self.greatest:g}"
        return f"between {self.least:g} and {self.greatest:g}"


BOUNDS: Mapping[str, Bounds] = {
    "max_tokens": Bounds(1),
    "temperature": Bounds(0, 2),
    "top_p": Bounds(0, 1, excludes_least=True),
    "top_k": Bounds(0),
    "min_p": Bounds(0, 1),
    # On the wire a seed is unsigned; OpenAI's seeds are signed.
    "seed": Bounds(-(2**63), 2**64 - 1, description="a 64-bit integer"),
    # A logit is divided by it: with less, a 32-bit float overflows.
    "repetition_penalty": Bounds(0.01, 10),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
    # Of each bias.
    "logit_bias": Bounds(-100, 100),
    "min_tokens": Bounds(0),
    "num_logprobs": Bounds(0, MAX_LOGPROBS),
    "num_prompt_logprobs": Bounds(0, MAX_LOGPROBS),
    "priority": Bounds(-100, 100),
}
"""Bounds of every numeric parameter. All services and the public API's schema use this table."""


class Violation(NamedTuple):
    """A parameter that is out of its bounds."""

    field: str
    problem: str
    """What must follow the field's name in a message."""
    key: str = ""
    """Follows the name of a field that is a map, such as "[5]"."""

    @property
    def message(self) -> str:
        """The field, the limit and the given value."""
        return f"{self.field}{self.key} {self.problem}"


_BOUNDED = tuple((name, bounds) for name, bounds in BOUNDS.items() if name != "logit_bias")


def first_violation(params: SamplingParams) -> Violation | None:
    """The first parameter that is out of its bounds; the constraint is not checked."""
    for name, bounds in _BOUNDED:
        value = getattr(params, name)
        if value is not None and not bounds.allow(value):
            return Violation(name, _problem(bounds, value))
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        limit = f"at most max_tokens ({params.max_tokens})"
        return Violation("min_tokens", f"must be {limit}, given {params.min_tokens}")
    for name, most in (("stop_token_ids", MAX_STOP_TOKEN_IDS), ("logit_bias", MAX_LOGIT_BIAS)):
        number = len(getattr(params, name))
        if number > most:
            return Violation(name, f"must be at most {most} ids, given {number} ids")
    for token_id, bias in params.logit_bias.items():
        if not BOUNDS["logit_bias"].allow(bias):
            problem = _problem(BOUNDS["logit_bias"], bias)
            return Violation("logit_bias", problem, f"[{token_id}]")
    return None


def _problem(bounds: Bounds, value: float) -> str:
    given = str(value) if isinstance(value, int) else f"{value:g}"
    return f"must be {bounds.limit}, given {given}"


_NAMES = tuple(each.name for each in fields(SamplingParams) if each.name != "constraint")
_DEFAULTS = SamplingParams()
_FROM_PROTO: Mapping[str, Callable[[Any], Any]] = {
    "logit_bias": dict,
    "stop_token_ids": frozenset,
    "constraint": constraint_from_proto,
}


def sampling_to_proto(params: SamplingParams) -> common_pb2.SamplingParams:
    """Convert to protobuf."""
    values = {}
    for name in _NAMES:
        value = getattr(params, name)
        # A parameter with its default is absent on the wire as well; most are.
        if value is not getattr(_DEFAULTS, name):
            values[name] = value
    message = common_pb2.SamplingParams(**values)
    if params.constraint is not None:
        message.constraint.CopyFrom(constraint_to_proto(params.constraint))
    return message


def sampling_values(message: common_pb2.SamplingParams) -> dict[str, Any]:
    """The values that the sender has set, by field. Raises MeshError for an empty constraint."""
    return {
        each.name: _FROM_PROTO[each.name](value) if each.name in _FROM_PROTO else value
        for each, value in message.ListFields()
    }


def sampling_from_proto(message: common_pb2.SamplingParams) -> SamplingParams:
    """Convert from protobuf, unchecked. Raises MeshError for an empty constraint."""
    return SamplingParams(**sampling_values(message))
