"""What is told about one HTTP request: its access line, its metrics, its span."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opentelemetry import trace
from starlette.types import Scope

from gateway.http.errors import HttpError
from gateway.observability import metrics
from mesh.context import annotate, current_request
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv
from mesh.protocol.finish import GenerationFinish

logger = logging.getLogger("gateway.access")

_KEY = "gateway.observability.request_record"


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Filled in on the way of a request; `ObserveMiddleware` tells it in the end."""

    route: str = ""
    status: int = 0
    arrived: float = field(default_factory=time.monotonic)
    error: ErrorKind | None = None
    """What ended it, also where the status was spent before."""
    summary: Callable[[], Mapping[str, object]] | None = None
    """What the access line says of the generation, asked once the request has ended: a client
    that left in the middle has used tokens too."""
    ignored: Sequence[str] = ()
    """Fields of the body that nothing here knows."""
    _route: str = ""
    _first_token: float | None = None
    _first_token_at: int = 0
    """Nanoseconds since 1970, as spans have it."""
    _first_token_recorded: bool = False

    @staticmethod
    def of(scope: Scope) -> RequestRecord:
        """The record of the request with this scope."""
        record: RequestRecord = scope[_KEY]
        return record

    @property
    def model(self) -> str:
        """The name of the model that answers; empty where that is not told."""
        request = current_request()
        return str(request.fields.get("model", "")) if request is not None else ""

    def attach(self, scope: Scope) -> None:
        """Makes this the record of the request with this scope."""
        scope[_KEY] = self

    def text(self, route: str) -> None:
        """Text is about to be sent."""
        if self._first_token is None:
            self._route, self._first_token = route, time.monotonic()
            self._first_token_at = time.time_ns()
        else:
            self.record_first_token()

    def record_first_token(self) -> None:
        """Tells when the first text was sent, if it was and nobody knows.

        Called with what follows it, so that the first text need not wait for that.
        """
        if self._first_token is None or self._first_token_recorded:
            return
        self._first_token_recorded = True
        seconds = self._first_token - self.arrived
        metrics.observe_first_token(self._route, self.model, seconds)
        annotate(ttft_seconds=seconds)
        trace.get_current_span().add_event(semconv.FIRST_TOKEN, timestamp=self._first_token_at)

    def finished(self, finish: GenerationFinish) -> None:
        """The generation ended."""
        usage = finish.usage
        if self._first_token is not None and usage.completion_tokens > 1:
            seconds = time.monotonic() - self._first_token
            per_token = seconds / (usage.completion_tokens - 1)
            metrics.observe_time_per_output_token(self._route, self.model, per_token)
        annotate(
            finish_reason=finish.reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    def failed(self, error: MeshError | HttpError) -> None:
        """The request failed, before or after its first byte."""
        if isinstance(error, HttpError):
            annotate(error=error.message)
            return
        metrics.ERRORS.labels(error.kind.value).inc()
        annotate(error=error.for_the_log, error_kind=error.kind.value)
        logger.debug("request failed", extra={"error": error.message})
        self.error = error.kind
