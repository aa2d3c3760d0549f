"""Which requests are traced where nobody says otherwise: all, up to some a second.

A request that is recorded costs some 2 ms of CPU more (docs/decisions/0029). Somebody who tries
a query finds it in Grafana; a thousand clients do not pay for that a thousand times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes

SAMPLER_VARIABLE = "OTEL_TRACES_SAMPLER"
ARGUMENT_VARIABLE = "OTEL_TRACES_SAMPLER_ARG"
RATE_LIMITED = "parentbased_ratelimited"
"""Our value of the variable; its argument is traces a second."""

TRACES_PER_SECOND = 1.0

BURST = 10
"""Traces at once after a quiet time: somebody who tries some queries finds them all."""


class RateLimited(Sampler):
    """Samples so many a second, evenly, and `burst` at once, or a second's, after a quiet time.

    A token bucket, for any thread.
    """

    def __init__(
        self,
        per_second: float,
        *,
        burst: int = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` above 0; less than 1 is one in some seconds."""
        if not 0 < per_second < float("inf"):
            raise ValueError(f"traces per second must be a number above 0. Given: {per_second}")
        self._per_second = per_second
        self._clock = clock
        self._capacity = max(float(burst), per_second)
        self._left = self._capacity
        self._seen = clock()
        self._lock = threading.Lock()

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
        decision = Decision.RECORD_AND_SAMPLE if self._take() else Decision.DROP
        state = get_current_span(parent_context).get_span_context().trace_state
        return SamplingResult(decision, attributes, state)

    def get_description(self) -> str:
        return f"RateLimited{{{self._per_second:g}}}"

    def _take(self) -> bool:
        with self._lock:
            now = self._clock()
            refilled = self._left + (now - self._seen) * self._per_second
            self._left, self._seen = min(refilled, self._capacity), now
            if self._left < 1:
                return False
            self._left -= 1
            return True


def chosen_sampler(environment: Mapping[str, str]) -> str:
    """The value of the standard variable; ours where it is unset."""
    return environment.get(SAMPLER_VARIABLE, "").strip().lower() or RATE_LIMITED


def sampler(environment: Mapping[str, str]) -> Sampler | None:
    """Ours where the standard variable is unset or names it; None: the SDK makes its own.

    Raises ValueError naming the variable.
    """
    if chosen_sampler(environment) != RATE_LIMITED:
        return None
    given = environment.get(ARGUMENT_VARIABLE, "").strip()
    try:
        return ParentBased(RateLimited(float(given) if given else TRACES_PER_SECOND))
    except ValueError as error:
        raise ValueError(
            f"{ARGUMENT_VARIABLE} is how many traces a second {RATE_LIMITED} records, "
            f"a number above 0. Given: {given!r}"
        ) from error
