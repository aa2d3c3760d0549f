"""What is told about one HTTP request: its access line, its metrics, its span."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from opentelemetry import trace
from starlette.types import Scope

from gateway import metrics
from gateway.errors import HttpError
from gateway.generation import Finish
from mesh import semconv
from mesh.context import annotate
from mesh.errors import ErrorKind, MeshError
from mesh.metrics import exemplar

_KEY = "gateway.observation"


@dataclass(slots=True, kw_only=True)
class Observation:
    """Filled in on the way of a request; `ObserveMiddleware` tells it in the end."""

    route: str = ""
    status: int = 0
    arrived: float = field(default_factory=time.monotonic)
    error: ErrorKind | None = None
    """What ended it, also where the status was spent before."""
    _saw_token: bool = False

    @staticmethod
    def of(scope: Scope) -> Observation:
        """The observation of the request with this scope."""
        observation: Observation = scope[_KEY]
        return observation

    def attach(self, scope: Scope) -> None:
        """Makes this the observation of the request with this scope."""
        scope[_KEY] = self

    def first_token(self, route: str) -> None:
        """Text is about to be sent; only the first call counts."""
        if self._saw_token:
            return
        self._saw_token = True
        seconds = time.monotonic() - self.arrived
        metrics.TIME_TO_FIRST_TOKEN.labels(route).observe(seconds, exemplar())
        annotate(ttft_seconds=seconds)
        trace.get_current_span().add_event(semconv.FIRST_TOKEN)

    def finished(self, finish: Finish) -> None:
        """The generation ended."""
        usage = finish.usage
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
        annotate(error=error.message, error_kind=error.kind.value)
        self.error = error.kind
