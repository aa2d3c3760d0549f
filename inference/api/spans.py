"""OpenTelemetry spans of sequences and of engine steps, built from the engine's timestamps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from opentelemetry.util.types import AttributeValue

from inference.api import metrics
from inference.engine.errors import DeadlineExceeded
from inference.engine.interface import Finish, PrefillChunk, StepRecord
from inference.sampling.sampling_params import SamplingParams
from mesh.observability import semconv, tracing
from mesh.observability.recording.current import current_span
from mesh.observability.recording.span import RecordedSpan
from mesh.observability.semconv import Outcome
from mesh.protocol.finish import FinishReason


def describe(model: str, params: SamplingParams, num_resumed_tokens: int) -> None:
    """Set what the engine was asked for on the current span.

    The operation and its usage are in the span of the generation, the caller's: a request has
    several of these spans after a failover, and tools add up what they find.
    """
    span = current_span()
    if not span.is_recording():
        return
    attributes: dict[str, AttributeValue | None] = {
        semconv.GEN_AI_REQUEST_MODEL: model,
        semconv.GEN_AI_RESPONSE_MODEL: model,
        semconv.GEN_AI_REQUEST_MAX_TOKENS: params.max_tokens,
        semconv.GEN_AI_REQUEST_TEMPERATURE: params.temperature,
        semconv.GEN_AI_REQUEST_TOP_P: params.top_p,
        semconv.GEN_AI_REQUEST_TOP_K: params.top_k,
        semconv.GEN_AI_REQUEST_SEED: semconv.signed(params.seed),
        semconv.NUM_RESUMED_TOKENS: num_resumed_tokens or None,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})


def record_finish(finish: Finish) -> None:
    """Add child spans `queue`, `prefill` and `decode` to the current span, and counts to it."""
    span = current_span()
    if not isinstance(span, RecordedSpan):
        return
    timings = finish.timings
    attributes: dict[str, AttributeValue] = {
        semconv.NUM_PROMPT_TOKENS: finish.num_prompt_tokens,
        semconv.NUM_TOKENS: finish.num_completion_tokens,
        semconv.NUM_CACHED_TOKENS: finish.num_cached_tokens,
        semconv.GEN_AI_RESPONSE_FINISH_REASONS: [finish.reason.value],
        semconv.NUM_PREEMPTIONS: finish.num_preemptions,
        semconv.NUM_STEPS: finish.num_steps,
        semconv.MEAN_BATCH_SIZE: finish.mean_batch_size,
    }
    clock = _Clock(span)
    first_token, ttft = timings.first_token, timings.ttft_seconds
    if first_token is not None and ttft is not None:
        attributes[semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] = ttft
        span.add_event(semconv.FIRST_TOKEN, timestamp=clock.at(first_token))
    span.set_attributes(attributes)
    stages = _stages(finish)
    for stage in stages:
        _add(stage, span, clock, _outcome(finish) if stage is stages[-1] else Outcome.OK)


def describe_embeddings(model: str, num_inputs: int, num_tokens: int) -> None:
    """Set what the engine is to embed on the current span."""
    span = current_span()
    if span.is_recording():
        span.set_attributes(
            {
                semconv.GEN_AI_REQUEST_MODEL: model,
                semconv.GEN_AI_RESPONSE_MODEL: model,
                semconv.NUM_INPUTS: num_inputs,
                semconv.NUM_PROMPT_TOKENS: num_tokens,
            }
        )


def record_embeddings(arrival: float, begin: float | None, error: BaseException | None) -> None:
    """Add child spans `queue` and `compute` to the current span, of a call that ends now.

    `arrival` and `begin`, of the first piece, are `time.monotonic()`; `begin` None: it only waited.
    `error` is what ended the call.
    """
    span = current_span()
    if not isinstance(span, RecordedSpan):
        return
    clock, end = _Clock(span), time.monotonic()
    stages = [_Stage(semconv.QUEUE, arrival, end if begin is None else begin, {}, [])]
    if begin is not None:
        stages.append(_Stage(semconv.COMPUTE, begin, end, {}, []))
    for stage in stages:
        _add(stage, span, clock, _outcome_of(error) if stage is stages[-1] else Outcome.OK)


MAX_STEP_SPANS = 8
"""Most requests whose traces have a span of one step: a step may run hundreds of requests."""


class StepSpans:
    """Spans of engine steps in the sampled traces of the requests that each step ran.

    A step belongs to several requests, and its span is in the trace of each. In a separate trace,
    steps would be most of what a list of traces shows.
    """

    def __init__(self) -> None:
        self._live: dict[str, RecordedSpan] = {}

    def request(self, request_id: str) -> AbstractContextManager[None]:
        """Inside the block, steps that run this sequence have child spans of the current span."""
        span = current_span()
        # Traces that are held until their end have none: they would fill the buffer.
        if not (isinstance(span, RecordedSpan) and span.part.is_sampled):
            return nullcontext()
        return self._tracked(request_id, span)

    @contextmanager
    def _tracked(self, request_id: str, span: RecordedSpan) -> Iterator[None]:
        self._live[request_id] = span
        try:
            yield
        finally:
            del self._live[request_id]

    def record(self, step: StepRecord) -> None:
        """Record a step's metrics, with an exemplar, and its spans in the requests' traces.

        Call it in the event loop.
        """
        requests = [self._live[each] for each in step.request_ids if each in self._live]
        if not step.failed:
            metrics.observe_step(
                step.num_prefill_tokens + step.num_decode_tokens,
                step.end - step.start,
                {"trace_id": requests[0].part.hex_id} if requests else None,
            )
        for request in requests[:MAX_STEP_SPANS]:
            self._record(step, request)

    def _record(self, step: StepRecord, request: RecordedSpan) -> None:
        clock = _Clock(request)
        span = request.child(
            semconv.ENGINE_STEP,
            start_time=clock.at(step.start),
            attributes={
                semconv.OUTCOME: Outcome.OK,
                semconv.STEP_NUMBER: step.number,
                semconv.BATCH_SIZE: len(step.request_ids),
                semconv.NUM_PREFILL_TOKENS: step.num_prefill_tokens,
                semconv.NUM_DECODE_TOKENS: step.num_decode_tokens,
                semconv.NUM_WAITING: step.num_waiting,
                semconv.KV_CACHE_USAGE: step.kv_usage,
                semconv.NUM_PREEMPTIONS: step.num_preemptions,
            },
        )
        if step.failed:
            tracing.set_outcome(span, Outcome.FAILED)
        span.end(clock.at(step.end))


class _Stage(NamedTuple):
    name: str
    start: float
    end: float
    attributes: dict[str, AttributeValue]
    chunks: list[PrefillChunk]


class _Clock:
    """Converts `time.monotonic()` seconds of this host into nanoseconds since 1970.

    No time is before the start of `parent`: the wall clock may be adjusted in between.
    """

    def __init__(self, parent: RecordedSpan) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()
        self._earliest = parent.start_time

    def at(self, monotonic: float) -> int:
        return max(self._offset + round(monotonic * 1e9), self._earliest)


def _stages(finish: Finish) -> list[_Stage]:
    """The stages that the sequence reached; the last one ends with the sequence."""
    timings = finish.timings
    scheduled, first_token = timings.scheduled, timings.first_token
    stages = [_Stage(semconv.QUEUE, timings.arrival, scheduled or timings.finish, {}, [])]
    if scheduled is None:
        return stages
    end = first_token or timings.finish
    chunks = [chunk for chunk in timings.prefill if chunk.end <= end]
    attributes: dict[str, AttributeValue] = {
        semconv.NUM_PROMPT_TOKENS: finish.num_prompt_tokens,
        semconv.NUM_CACHED_TOKENS: finish.num_cached_tokens,
        semconv.NUM_TOKENS: sum(chunk.num_tokens for chunk in chunks),
        semconv.NUM_STEPS: len(chunks),
    }
    if chunks:
        attributes[semconv.MEAN_BATCH_SIZE] = sum(c.batch_size for c in chunks) / len(chunks)
    if first_token is None:
        attributes[semconv.NUM_PREEMPTIONS] = finish.num_preemptions
    stages.append(_Stage(semconv.PREFILL, scheduled, end, attributes, chunks))
    if first_token is None:
        return stages
    # Chunks computed again after a preemption that came after the first token.
    again = [chunk for chunk in timings.prefill if chunk.end > end]
    attributes = {
        semconv.NUM_TOKENS: finish.num_completion_tokens,
        semconv.NUM_STEPS: max(finish.num_steps - len(chunks), 0),
        semconv.MEAN_BATCH_SIZE: finish.mean_batch_size,
        semconv.NUM_PREEMPTIONS: finish.num_preemptions,
    }
    stages.append(_Stage(semconv.DECODE, first_token, timings.finish, attributes, again))
    return stages


def _add(stage: _Stage, parent: RecordedSpan, clock: _Clock, outcome: Outcome) -> None:
    span = parent.child(stage.name, start_time=clock.at(stage.start), attributes=stage.attributes)
    for chunk in stage.chunks:
        span.add_event(
            semconv.PREFILL_CHUNK,
            {
                semconv.NUM_TOKENS: chunk.num_tokens,
                semconv.BATCH_SIZE: chunk.batch_size,
                semconv.DURATION_SECONDS: chunk.end - chunk.start,
            },
            timestamp=clock.at(chunk.end),
        )
    tracing.set_outcome(span, outcome)
    span.end(clock.at(stage.end))


def _outcome(finish: Finish) -> Outcome:
    if finish.error is not None:
        return _outcome_of(finish.error)
    if finish.reason is FinishReason.ERROR:
        return Outcome.FAILED
    if finish.reason is FinishReason.ABORT:
        return tracing.OUTCOME_OF[tracing.kind_of_cancellation()]
    return Outcome.OK


def _outcome_of(error: BaseException | None) -> Outcome:
    if error is None:
        return Outcome.OK
    if isinstance(error, DeadlineExceeded):
        return Outcome.DEADLINE
    if isinstance(error, asyncio.CancelledError):
        return tracing.OUTCOME_OF[tracing.kind_of_cancellation()]
    return Outcome.FAILED
