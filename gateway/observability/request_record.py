"""The record of one HTTP request, the source of its access log line, metrics and span."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from gateway.http.errors import CLIENT_CLOSED_REQUEST, HttpError
from gateway.observability import metrics
from gateway.observability.tracing import needs_attributes
from gateway.observability.usage_total import UsageTotal
from mesh.context import annotate
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv, telemetry
from mesh.observability.recording.current import current_span
from mesh.observability.semconv import Outcome
from mesh.observability.tracing import OUTCOME_OF
from mesh.protocol.chat import ToolPrompt
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import GenerationFinish, GenerationStarted

logger = logging.getLogger("gateway.access")

_KEY = "gateway.observability.request_record"


class SlowThresholds(NamedTuple):
    """Times in seconds from which a request's trace is kept because the request was slow."""

    first_token: float
    request: float


NEVER_SLOW = SlowThresholds(math.inf, math.inf)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Endpoints record each event once, when it happens; `ObserveMiddleware` reports the end.

    accept ─▶ delta … ─▶ finish
        └──────────────▶ fail
    """

    status: int = 0
    model: str = ""
    """The name of the served model; empty while it is unknown."""
    arrived: float = field(default_factory=time.monotonic)
    error: ErrorKind | None = None
    """Why the request failed, also after the status was sent."""
    ignored: Sequence[str] = ()
    """Unknown fields of the body."""
    body_bytes: int = 0
    tool_prompt: ToolPrompt = ToolPrompt.NONE
    usage: UsageTotal = field(default_factory=lambda: UsageTotal(None, 0))
    slow: SlowThresholds = NEVER_SLOW
    _route: str = ""
    _failover_causes: list[str] = field(default_factory=list)
    _complete: bool = False
    _first_text: float | None = None
    _first_text_ns: int = 0
    """Nanoseconds since 1970, the unit of span timestamps."""
    _first_text_reported: bool = False

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """The record of the request with this scope."""
        record: RequestRecord = scope[_KEY]
        return record

    @property
    def error_type(self) -> str:
        """Value of the metrics' error label, one of few; empty if the request succeeded."""
        if self.error is not None:
            return self.error.value
        if self.status == CLIENT_CLOSED_REQUEST:
            return ErrorKind.CANCELLED.value
        return str(self.status) if self.status >= 400 else ""

    def attach(self, scope: Scope) -> None:
        """Make this the record of the request with this scope."""
        scope[_KEY] = self

    def accept(
        self, route: str, started: Sequence[GenerationStarted] = (), n: int = 1, model: str = ""
    ) -> None:
        """Record the acceptance by the orchestrator; a search reports its prompt tokens at its end.

        Each prompt has `n` consecutive choices in `started`; its tokens are counted once. `model`
        is the served one where nothing has started yet.
        """
        self._route = route
        self.model = model
        if started:
            self.model, self.tool_prompt = started[0].model, started[0].tool_prompt
        prompt_tokens = sum(each.prompt_tokens for each in started[::n]) if started else None
        self.usage = UsageTotal(prompt_tokens, max(len(started), 1), n)

    def delta(self, index: int, delta: Delta) -> None:
        """Record a delta of choice `index`, before it is sent."""
        self.usage.add(index, delta)
        if self._first_text is None:
            self._first_text, self._first_text_ns = time.monotonic(), time.time_ns()
        elif not self._first_text_reported:
            self._report_first_text()

    def finish(self, index: int, finish: GenerationFinish) -> None:
        """Record that choice `index` is complete."""
        self.usage.finish(index, finish)
        self._failover_causes += finish.failover_causes
        self._complete = True
        num_tokens = finish.usage.completion_tokens
        if self._first_text is not None and num_tokens > 1:
            per_token = (time.monotonic() - self._first_text) / (num_tokens - 1)
            metrics.observe_time_per_output_token(self._route, self.model, per_token)

    def fail(self, error: MeshError | HttpError) -> None:
        """Record a failure, before or after the first byte."""
        if isinstance(error, HttpError):
            annotate(error=error.message)
            return
        metrics.ERRORS.labels(error.kind.value).inc()
        annotate(error=error.for_the_log, error_kind=error.kind.value)
        logger.debug("request failed", extra={"error": error.message})
        self.error = error.kind

    @property
    def outcome(self) -> Outcome:
        """The outcome of the request, as far as it is known."""
        if self.error is not None:
            return OUTCOME_OF[self.error]
        if self.status == CLIENT_CLOSED_REQUEST:
            return Outcome.CANCELLED
        if self.status >= 400:
            return Outcome.INVALID if self.status < 500 else Outcome.FAILED
        return Outcome.FAILED_OVER if self._failover_causes else Outcome.OK

    def is_traced(self) -> bool | None:
        """Whether the request's trace is exported; None while that is undecided."""
        if self._complete or self.error is not None or self.status >= 400:
            return telemetry.settle_trace(self.outcome, slow=self._is_slow())
        return telemetry.is_exported() or None

    def end(self) -> None:
        """Record the end of the response, and add the remaining fields to log and span."""
        if self._first_text is not None and not self._first_text_reported:
            self._report_first_text()
        if self.model:
            annotate(model=self.model)
        self._complete = True
        traced = self.is_traced()
        annotate(**self.usage.log_fields(), **({} if telemetry.silent else {"traced": traced}))
        span = current_span()
        if needs_attributes(span):
            span.set_attributes(self._span_attributes())

    def _span_attributes(self) -> dict[str, AttributeValue]:
        """What the span of the request says of its generations; their usage is in their spans."""
        found: dict[str, AttributeValue] = {semconv.MODEL: self.model}
        if self._first_text is not None:
            found[semconv.TIME_TO_FIRST_TOKEN] = self._first_text - self.arrived
        if self._failover_causes:
            found[semconv.NUM_FAILOVERS] = len(self._failover_causes)
            found[semconv.FAILOVER_CAUSES] = self._failover_causes
        return found

    def _is_slow(self) -> bool:
        first_text = self._first_text or time.monotonic()
        return (
            first_text - self.arrived >= self.slow.first_token
            or time.monotonic() - self.arrived >= self.slow.request
        )

    def _report_first_text(self) -> None:
        """Reported with the second delta or at the end, so that the first one is not delayed."""
        assert self._first_text is not None, "a first text has been sent"
        self._first_text_reported = True
        seconds = self._first_text - self.arrived
        metrics.observe_first_token(self._route, self.model, seconds)
        annotate(ttft_seconds=seconds)
        current_span().add_event(semconv.FIRST_TOKEN, timestamp=self._first_text_ns)
