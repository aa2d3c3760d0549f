"""Which requests are traced: so many a second, each whole, and what the caller has decided."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from mesh.observability.trace_sampling import (
    ARGUMENT_VARIABLE,
    RATE_LIMITED,
    SAMPLER_VARIABLE,
    RateLimited,
    sampler,
)


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sampled(limit: RateLimited, number: int) -> int:
    """How many of so many new traces are recorded."""
    tracer = TracerProvider(sampler=ParentBased(limit)).get_tracer("t")
    return sum(tracer.start_span("s").is_recording() for _ in range(number))


def test_so_many_a_second_and_no_more() -> None:
    """A quiet second is made up for, a quiet hour is not."""
    clock = Clock()
    limit = RateLimited(10, burst=1, clock=clock)
    assert sampled(limit, 25) == 10
    clock.now += 0.55
    assert sampled(limit, 25) == 5
    clock.now += 3600
    assert sampled(limit, 25) == 10


def test_one_in_some_seconds() -> None:
    """Less than one a second is no trace too many, and not none at all."""
    clock = Clock()
    limit = RateLimited(0.25, burst=1, clock=clock)
    assert sampled(limit, 5) == 1
    clock.now += 3.9
    assert sampled(limit, 5) == 0
    clock.now += 0.2
    assert sampled(limit, 5) == 1


def test_some_queries_after_a_quiet_time_are_all_traced() -> None:
    """Whoever tries a few finds them, however few a second there are to be."""
    clock = Clock()
    limit = RateLimited(0.5, clock=clock)
    assert sampled(limit, 25) == 10
    clock.now += 8
    assert sampled(limit, 25) == 4


@pytest.mark.parametrize("flags", [TraceFlags.SAMPLED, TraceFlags.DEFAULT])
def test_what_the_caller_decided_stands(flags: int) -> None:
    """A trace is whole or not there at all, and costs the limit nothing."""
    limit = RateLimited(1, burst=1)
    assert sampled(limit, 1) == 1  # nothing is left
    tracer = TracerProvider(sampler=ParentBased(limit)).get_tracer("t")
    above = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(flags))
    context = trace.set_span_in_context(NonRecordingSpan(above))
    span = tracer.start_span("s", context)
    assert span.is_recording() is bool(flags)
    assert span.get_span_context().trace_id == 0xA


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "many"])
def test_a_rate_that_is_none_is_named(given: str) -> None:
    """The variable, what it takes and what it was given."""
    with pytest.raises(ValueError, match=f"{ARGUMENT_VARIABLE} .* above 0, given '{given}'"):
        sampler({ARGUMENT_VARIABLE: given})


def test_the_standard_variable_chooses() -> None:
    """Unset it is ours; the SDK knows all others."""
    unset = sampler({})
    assert unset is not None
    assert "RateLimited{1}" in unset.get_description()
    chosen = sampler({SAMPLER_VARIABLE: RATE_LIMITED.upper(), ARGUMENT_VARIABLE: "2.5"})
    assert chosen is not None
    assert "RateLimited{2.5}" in chosen.get_description()
    assert sampler({SAMPLER_VARIABLE: "parentbased_always_on"}) is None
