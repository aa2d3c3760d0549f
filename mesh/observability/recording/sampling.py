"""The default sampler: records all traces up to a rate limit.

Exporting the spans of a request costs many times what recording them does
(docs/decisions/0090). With the limit, single requests are always found in Grafana, and under load
the cost stays constant.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

from mesh.observability.recording.rate import TokenBucket

SAMPLER_VARIABLE = "OTEL_TRACES_SAMPLER"
ARGUMENT_VARIABLE = "OTEL_TRACES_SAMPLER_ARG"
RATE_LIMITED = "parentbased_ratelimited"
"""Weir's additional value of the variable; its argument is the traces per second."""

TRACES_PER_SECOND = 1.0

BURST = 10
"""Capacity of the token bucket: traces that are recorded at once after an idle time."""


class RateLimited(Sampler):
    """A token bucket: samples `per_second` traces a second, and up to `burst` at once.

    Thread-safe.
    """

    def __init__(
        self,
        per_second: float,
        *,
        burst: int = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` must be more than 0 and may be less than 1."""
        if not 0 < per_second < float("inf"):
            raise ValueError(f"traces per second must be a number above 0, given {per_second}")
        self._per_second = per_second
        self._bucket = TokenBucket(per_second, burst, clock)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        decision = Decision.RECORD_AND_SAMPLE if self.allows() else Decision.DROP
        state = get_current_span(parent_context).get_span_context().trace_state
        return SamplingResult(decision, attributes, state)

    def allows(self) -> bool:
        """Whether one more new trace is sampled now."""
        return self._bucket.take()

    def get_description(self) -> str:
        return f"RateLimited{{{self._per_second:g}}}"


class ParentRateLimited(ParentBased):
    """Follows the caller's decision; new traces are sampled up to the limit."""

    def __init__(self, limit: RateLimited) -> None:
        super().__init__(limit)
        self._limit = limit

    def samples(self, parent: SpanContext) -> bool:
        """`should_sample` without a context and a result, which cost more than the decision."""
        return parent.trace_flags.sampled if parent.is_valid else self._limit.allows()


def chosen_sampler(environment: Mapping[str, str]) -> str:
    """The value of the standard variable; `RATE_LIMITED` if it is unset."""
    return environment.get(SAMPLER_VARIABLE, "").strip().lower() or RATE_LIMITED


def sampler(environment: Mapping[str, str]) -> Sampler | None:
    """The rate-limited sampler if `chosen_sampler` is that one; None: the SDK's own applies.

    Raises ValueError that names the variable.
    """
    if chosen_sampler(environment) != RATE_LIMITED:
        return None
    given = environment.get(ARGUMENT_VARIABLE, "").strip()
    try:
        return ParentRateLimited(RateLimited(float(given) if given else TRACES_PER_SECOND))
    except ValueError as error:
        raise ValueError(
            f"{ARGUMENT_VARIABLE} must be the traces per second that {RATE_LIMITED} records, "
            f"a number above 0, given {given!r}"
        ) from error
