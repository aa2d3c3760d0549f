"""The account of one request: what happened to it and when.

Each event is recorded here once. Metrics, the access log line and the spans all read it, so they
agree.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

from mesh.context import annotate
from mesh.errors import ErrorKind, MeshError
from mesh.observability import semconv
from mesh.observability.metrics import exemplar, labelled
from mesh.observability.recording.current import current_span
from mesh.observability.semconv import Operation
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.deltas import Delta
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from orchestrator.clients.tokenizer import Encoded
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics, spans


class SideGeneration:
    """Counts the tokens of a generation whose text is not part of the answer."""

    def __init__(self, prompt_tokens: int) -> None:
        self.finish: GenerationFinish | None = None
        self.usage = Usage(prompt_tokens)

    def add(self, chunk: TokenChunk) -> None:
        """Counts a chunk; the engine's own usage replaces the count."""
        completion_tokens = self.usage.completion_tokens + len(chunk.token_ids)
        self.usage = self.usage._replace(completion_tokens=completion_tokens)
        if chunk.finish is not None:
            self.finish, self.usage = chunk.finish, chunk.finish.usage


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(*(a + b for a, b in zip(one, other, strict=True)))


class RequestAccount:
    """Arrival, admission, prompt, tokens, first text, finish or failure of one request."""

    def __init__(self, method: str) -> None:
        """Starts the clock: the request has arrived."""
        self.method = method
        self.model = ""
        """Name of the model that answers; empty until it is chosen."""
        self.api_request: ApiRequest | None = None
        """What the gateway says of the client's request; for spans."""
        self.operation = ""
        """As the gateway's metrics call the operation; empty until the prompt is encoded."""
        self.outcome = metrics.REFUSED_AT_ADMISSION
        """Label of the request metrics: refused, ok, cancelled or an error kind."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.ttft_seconds: float | None = None
        """Time from arrival to the first text; None until then."""
        self.finish: GenerationFinish | None = None
        self.generation = spans.NO_SPAN
        """Span of the generation that runs for this request."""
        self.arrived = time.monotonic()
        self._asked = ""
        self._failover_causes: list[str] = []
        self._side_usage = Usage()
        self._num_resumptions = 0
        self._unreported_ttft = False

    @property
    def age_seconds(self) -> float:
        """Time since the request arrived."""
        return time.monotonic() - self.arrived

    @property
    def usage(self) -> Usage:
        """The engine's own usage once the generation has finished, else the tokens counted."""
        if self.finish is not None:
            return self.finish.usage
        return Usage(self.prompt_tokens, self.completion_tokens)

    def accepted(self) -> None:
        """Record the admission. The outcome is cancelled until success or failure is recorded."""
        self.outcome = metrics.CANCELLED

    def asks_for(self, model: str) -> None:
        """Record that the request is for this model, which may have no engine yet."""
        if not self._asked:
            self._asked = model
            labelled(metrics.MODEL_REQUESTS, model).inc()
            labelled(metrics.NUM_MODEL_REQUESTS, model).inc()

    def chosen(self, model: ModelInfo) -> None:
        """Record the model that answers."""
        self.model = model.name

    def encoded(self, num_tokens: int, operation: str) -> None:
        """Record the tokens of an encoded prompt, or of a batch of inputs to embed."""
        self.operation = semconv.SEARCH if self.method.startswith("Summarize") else operation
        self.prompt_tokens += num_tokens
        metrics.PROMPT_TOKENS.inc(num_tokens)

    def start_generation(self, prompt: Encoded, requested: spans.Requested) -> None:
        """Opens the generation's span; `end_generation` must follow."""
        self.generation = spans.generation(prompt, requested)

    def end_generation(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the generation's span with its result and the exception that ended it, if any."""
        self.report_first_text()
        self.generation.set_result(self.usage, self.finish)
        self.generation.__exit__(kind, error, traceback)

    @contextmanager
    def side_generation(
        self, prompt: Encoded, requested: spans.Requested
    ) -> Iterator[SideGeneration]:
        """A generation for the orchestrator itself, before that of the answer.

        Its tokens are part of the request's usage.
        """
        side = SideGeneration(len(prompt.token_ids))
        metrics.PROMPT_TOKENS.inc(side.usage.prompt_tokens)
        with spans.generation(prompt, requested) as self.generation:
            try:
                yield side
            finally:
                self.generation.set_result(side.usage, side.finish)
                self.generation = spans.NO_SPAN
                metrics.GENERATION_TOKENS.inc(side.usage.completion_tokens)
                self._side_usage = side.usage

    def generated(self, num_tokens: int) -> None:
        """Record tokens that arrived from a replica."""
        self.completion_tokens += num_tokens
        metrics.GENERATION_TOKENS.inc(num_tokens)

    def delta(self, delta: Delta) -> None:
        """Record a delta, before it is sent."""
        if self.ttft_seconds is None:
            self.ttft_seconds = self.age_seconds
            self._unreported_ttft = True
        self.generation.text(delta.text)

    def failover(self, address: str, error: MeshError, num_tokens: int) -> None:
        """Record that the replica at `address` was lost after `num_tokens`."""
        self.generation.failover(address, error, num_tokens)
        self._failover_causes.append(f"{error.kind}: {error.for_the_log}")
        self._num_resumptions += num_tokens > 0

    def finished(self, finish: GenerationFinish) -> GenerationFinish:
        """Record the finish of the generation; returns it with the number of failovers."""
        if self._side_usage.prompt_tokens:
            finish = replace(finish, usage=_sum(finish.usage, self._side_usage))
        if self._failover_causes:
            finish = replace(
                finish,
                num_resumptions=self._num_resumptions,
                failover_causes=tuple(self._failover_causes),
            )
        self.finish = finish
        return finish

    def end_early(self, reason: FinishReason) -> GenerationFinish:
        """Record that the orchestrator ended the generation; returns the finish to send."""
        return self.finished(GenerationFinish(reason, self.usage))

    def succeeded(self) -> None:
        """Record that the response is complete."""
        self.outcome = metrics.OK

    def failed(self, kind: ErrorKind) -> None:
        """Record an error. The outcome of a request that was not admitted stays `refused`."""
        if self.outcome != metrics.REFUSED_AT_ADMISSION:
            self.outcome = kind.value

    def report_first_text(self) -> None:
        """Report the time to first token, once. Call it after sending, to delay no token."""
        if not self._unreported_ttft or self.ttft_seconds is None:
            return
        self._unreported_ttft = False
        seconds = self.ttft_seconds
        labelled(metrics.TIME_TO_FIRST_TOKEN, self.method).observe(seconds, exemplar())
        timestamp = time.time_ns() - int(1e9 * (self.age_seconds - seconds))
        current_span().add_event(semconv.FIRST_TOKEN, timestamp=timestamp)
        self.generation.first_text(self.arrived + seconds, timestamp)

    def report(self) -> None:
        """Report the request's end to metrics and to the access log line. Called once."""
        self.report_first_text()
        self._observe()
        if self._asked:
            labelled(metrics.NUM_MODEL_REQUESTS, self._asked).dec()
        if self.model:
            annotate(model=self.model, prompt_tokens=self.prompt_tokens)
            if self.operation != Operation.EMBEDDINGS:
                annotate(completion_tokens=self.completion_tokens)
        if self.ttft_seconds is not None:
            annotate(ttft_seconds=self.ttft_seconds)
        if self.finish is not None:
            annotate(finish_reason=self.finish.reason.value)

    def _observe(self) -> None:
        """Counts the request and observes its duration and tokens."""
        labelled(metrics.REQUESTS, self.method, self.outcome).inc()
        if self.outcome in metrics.REFUSAL_REASONS and self.ttft_seconds is None:
            reason = metrics.REFUSAL_REASONS[self.outcome]
            labelled(metrics.REFUSED, self.method, reason).inc()
        if self.outcome == metrics.REFUSED_AT_ADMISSION:
            return
        labelled(metrics.E2E_LATENCY, self.method).observe(self.age_seconds, exemplar())
        if self.prompt_tokens:
            labels = (self.operation, semconv.PROVIDER, self.model)
            for kind, number in (("input", self.prompt_tokens), ("output", self.completion_tokens)):
                labelled(metrics.TOKEN_USAGE, *labels, kind).observe(number, exemplar())
