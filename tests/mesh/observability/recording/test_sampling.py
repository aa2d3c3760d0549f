"""The default sampler: a rate limit for whole traces, after the caller's decision."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from mesh.observability.recording.sampling import (
    ARGUMENT_VARIABLE,
    RATE_LIMITED,
    SAMPLER_VARIABLE,
    RateLimited,
    sampler,
)


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sampled(limit: RateLimited, number: int) -> int:
    """How many of `number` new traces are recorded."""
    tracer = TracerProvider(sampler=ParentBased(limit)).get_tracer("t")
    return sum(tracer.start_span("s").is_recording() for _ in range(number))


def test_the_rate_is_limited() -> None:
    """An idle second refills the bucket; an idle hour fills it only to its capacity."""
    clock = Clock()
    limit = RateLimited(10, burst=1, clock=clock)
    assert sampled(limit, 25) == 10
    clock.now += 0.55
    assert sampled(limit, 25) == 5
    clock.now += 3600
    assert sampled(limit, 25) == 10


def test_a_rate_below_one_a_second() -> None:
    """One trace is recorded every few seconds."""
    clock = Clock()
    limit = RateLimited(0.25, burst=1, clock=clock)
    assert sampled(limit, 5) == 1
    clock.now += 3.9
    assert sampled(limit, 5) == 0
    clock.now += 0.2
    assert sampled(limit, 5) == 1


def test_a_burst_after_an_idle_time_is_recorded() -> None:
    """The burst is independent of the rate."""
    clock = Clock()
    limit = RateLimited(0.5, clock=clock)
    assert sampled(limit, 25) == 10
    clock.now += 8
    assert sampled(limit, 25) == 4


@pytest.mark.parametrize("flags", [TraceFlags.SAMPLED, TraceFlags.DEFAULT])
def test_the_callers_decision_is_followed(flags: int) -> None:
    """A trace is recorded completely or not at all, and does not use up the limit."""
    limit = RateLimited(1, burst=1)
    assert sampled(limit, 1) == 1  # the bucket is empty
    tracer = TracerProvider(sampler=ParentBased(limit)).get_tracer("t")
    above = SpanContext(0xA, 0xB, is_remote=True, trace_flags=TraceFlags(flags))
    context = trace.set_span_in_context(NonRecordingSpan(above))
    span = tracer.start_span("s", context)
    assert span.is_recording() is bool(flags)
    assert span.get_span_context().trace_id == 0xA


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "many"])
def test_an_invalid_rate_is_named(given: str) -> None:
    """The message has the variable, the limit and the given value."""
    with pytest.raises(ValueError, match=f"{ARGUMENT_VARIABLE} .* above 0, given '{given}'"):
        sampler({ARGUMENT_VARIABLE: given})


def test_the_standard_variable_chooses_the_sampler() -> None:
    """Unset: the rate-limited sampler; the SDK creates all others."""
    unset = sampler({})
    assert unset is not None
    assert "RateLimited{1}" in unset.get_description()
    chosen = sampler({SAMPLER_VARIABLE: RATE_LIMITED.upper(), ARGUMENT_VARIABLE: "2.5"})
    assert chosen is not None
    assert "RateLimited{2.5}" in chosen.get_description()
    assert sampler({SAMPLER_VARIABLE: "parentbased_always_on"}) is None
