"""The span of a generation: its request parameters, events and results."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NamedTuple

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from mesh.errors import MeshError
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.recording.current import current_span
from mesh.observability.semconv import Operation, Outcome, OutputType
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.chat import ChatPrompt
from mesh.protocol.finish import GenerationFinish
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.usage import Usage
from orchestrator.clients.tokenizer import Encoded
from orchestrator.generation import ModelInfo

RELEASE_SECONDS = 0.01
"""Least time for which text was held back that has an event; all count in the attributes."""

MAX_RELEASES = 32
"""Most such events of a generation: each stop string or call may begin many times."""


class GenerationSpan:
    """A span and what it collects while the generation runs; the span ends with its block."""

    def __init__(
        self, span: Span, captures_content: bool, stage: tracing.Stage | None = None
    ) -> None:
        """`stage` ends the span; None: the span is not that of the generation."""
        self.span = span
        self._stage = stage
        self._held_since: float | None = None
        """Time (`time.monotonic`) since which tokens have arrived but no text could be sent."""
        self._held_seconds = 0.0
        self._num_held = self._num_releases = 0
        self._started = time.monotonic()
        self._num_failovers = 0
        self._texts: list[str] | None = [] if captures_content else None

    def __enter__(self) -> GenerationSpan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stage is not None:
            self._stage.__exit__(kind, error, traceback)

    def pushed(self, *, has_text: bool) -> None:
        """Records that tokens have arrived, and whether a text could be sent."""
        if has_text:
            self._release()
        elif self._held_since is None:
            self._held_since = time.monotonic()

    def _release(self) -> None:
        """Records that the text which was held back, if any, is decided."""
        if self._held_since is None:
            return
        seconds = time.monotonic() - self._held_since
        self._held_since = None
        self._held_seconds += seconds
        self._num_held += 1
        if seconds >= RELEASE_SECONDS and self._num_releases < MAX_RELEASES:
            self._num_releases += 1
            self.span.add_event(semconv.TEXT_RELEASED, {semconv.DURATION_SECONDS: seconds})

    def text(self, text: str) -> None:
        """Collects text for the span, if the span captures content."""
        if self._texts is not None:
            self._texts.append(text)

    def first_text(self, when: float, timestamp: int) -> None:
        """Records the first text, at `when` (`time.monotonic`), `timestamp` (ns since 1970)."""
        seconds = when - self._started
        self.span.set_attribute(semconv.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, seconds)
        self.span.add_event(semconv.FIRST_TOKEN, timestamp=timestamp)

    def failover(self, address: str, error: MeshError, num_tokens: int) -> None:
        """Adds an event: the replica at `address` was lost after `num_tokens`."""
        self._num_failovers += 1
        self.span.add_event(
            semconv.FAILOVER,
            {
                **tracing.address_attributes(address),
                semconv.ERROR_TYPE: error.kind,
                semconv.ERROR_MESSAGE: error.for_the_log,
                semconv.NUM_TOKENS: num_tokens,
            },
        )

    def set_result(self, usage: Usage, finish: GenerationFinish | None) -> None:
        """Sets the attributes that are known at the end of the generation."""
        if not self.span.is_recording():
            return
        self._release()
        reason = "" if finish is None else finish.reason.value
        result: dict[str, AttributeValue] = {
            semconv.GEN_AI_USAGE_INPUT_TOKENS: usage.prompt_tokens,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: usage.completion_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_tokens,
        }
        if reason:
            result[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = [reason]
        if self._num_held:
            result[semconv.HELD_SECONDS] = self._held_seconds
            result[semconv.HELD_PERIODS] = self._num_held
        if self._num_failovers:
            result[semconv.NUM_FAILOVERS] = self._num_failovers
            result[semconv.OUTCOME] = Outcome.FAILED_OVER
        if self._texts is not None:
            message = {**_message("assistant", "".join(self._texts)), "finish_reason": reason}
            result[semconv.GEN_AI_OUTPUT_MESSAGES] = json.dumps([message], ensure_ascii=False)
        self.span.set_attributes(result)


NO_SPAN = GenerationSpan(INVALID_SPAN, captures_content=False)


def operation_of(encoded: Encoded) -> Operation:
    """The GenAI operation that this prompt requests."""
    is_chat = isinstance(encoded.source, ChatPrompt)
    return Operation.CHAT if is_chat else Operation.TEXT_COMPLETION


class Requested(NamedTuple):
    """What a generation was asked for."""

    model: ModelInfo
    sampling: SamplingParams
    stop: Sequence[str]
    api: ApiRequest | None = None
    is_json: bool = False
    """Whether the client asked for JSON."""


def embeddings(model: ModelInfo, num_inputs: int, num_tokens: int) -> AbstractContextManager[Span]:
    """A span from the encoded inputs to the last vector. The block may contain `yield`."""
    attributes: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION_NAME: Operation.EMBEDDINGS,
        semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER,
        semconv.GEN_AI_REQUEST_MODEL: model.name,
        semconv.GEN_AI_RESPONSE_MODEL: model.name,
        semconv.GEN_AI_USAGE_INPUT_TOKENS: num_tokens,
        semconv.NUM_INPUTS: num_inputs,
    }
    name = f"{Operation.EMBEDDINGS} {model.name}"
    return tracing.detached_stage(name, attributes, kind=SpanKind.CLIENT)


def describe_search() -> None:
    """Set on the current span that it is of a search with its summary."""
    span = current_span()
    if span.is_recording():
        span.set_attribute(semconv.GEN_AI_OPERATION_NAME, Operation.INVOKE_WORKFLOW)
        span.set_attribute(semconv.GEN_AI_PROVIDER_NAME, semconv.PROVIDER)
        span.set_attribute(semconv.GEN_AI_AGENT_NAME, semconv.SEARCH)


def generation(encoded: Encoded, requested: Requested) -> GenerationSpan:
    """A span from the encoded prompt to the last text. The block may contain `yield`."""
    parent = current_span()
    if not telemetry.recorded(parent):
        return GenerationSpan(parent, captures_content=False)
    operation = operation_of(encoded)
    attributes = _request(operation, requested)
    captures_content = telemetry.captures_content()
    if captures_content and encoded.source is not None:
        messages = json.dumps(_input_messages(encoded.source), ensure_ascii=False)
        attributes[semconv.GEN_AI_INPUT_MESSAGES] = messages
    name = f"{operation} {requested.model.name}"
    stage = tracing.open_stage(name, parent, attributes, SpanKind.CLIENT)
    return GenerationSpan(stage.span, captures_content, stage)


def _request(operation: Operation, requested: Requested) -> dict[str, AttributeValue]:
    sampling = requested.sampling
    found: dict[str, AttributeValue] = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER,
        semconv.GEN_AI_REQUEST_MODEL: requested.model.name,
        semconv.GEN_AI_RESPONSE_MODEL: requested.model.name,
        semconv.GEN_AI_OUTPUT_TYPE: OutputType.JSON if requested.is_json else OutputType.TEXT,
    }
    optional = (
        (semconv.GEN_AI_REQUEST_MAX_TOKENS, sampling.max_tokens),
        (semconv.GEN_AI_REQUEST_TEMPERATURE, sampling.temperature),
        (semconv.GEN_AI_REQUEST_TOP_P, sampling.top_p),
        (semconv.GEN_AI_REQUEST_TOP_K, sampling.top_k),
        (semconv.GEN_AI_REQUEST_SEED, semconv.signed(sampling.seed)),
        (semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY, sampling.frequency_penalty),
        (semconv.GEN_AI_REQUEST_PRESENCE_PENALTY, sampling.presence_penalty),
    )
    for name, value in optional:
        if value is not None:
            found[name] = value
    if requested.stop:
        found[semconv.GEN_AI_REQUEST_STOP_SEQUENCES] = list(requested.stop)
    if requested.api is not None:
        _add_api_request(found, requested.api)
    return found


def _add_api_request(found: dict[str, AttributeValue], request: ApiRequest) -> None:
    found[semconv.GEN_AI_REQUEST_STREAM] = request.stream
    if request.response_id:
        found[semconv.GEN_AI_RESPONSE_ID] = request.response_id
    if request.num_choices > 1:
        found[semconv.GEN_AI_REQUEST_CHOICE_COUNT] = request.num_choices
        found[semconv.CHOICE_INDEX] = request.choice_index


def _input_messages(source: ChatPrompt | str) -> list[dict[str, object]]:
    if isinstance(source, str):
        return [_message("user", source)]
    return [_message(message.role, message.content) for message in source.messages]


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}
