"""The span of a generation: its request parameters, events and results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from mesh.errors import MeshError
from mesh.observability import semconv, telemetry, tracing
from mesh.observability.semconv import Operation, Outcome
from mesh.protocol.chat import ChatPrompt
from mesh.protocol.finish import GenerationFinish
from mesh.protocol.sampling_params import SamplingParams
from mesh.protocol.usage import Usage
from orchestrator.clients.tokenizer import Encoded
from orchestrator.generation import ModelInfo


class GenerationSpan:
    """A span and what it collects while the generation runs. `generation` creates and ends it."""

    def __init__(self, span: Span, captures_content: bool) -> None:
        self.span = span
        self._started = time.monotonic()
        self._num_failovers = 0
        self._texts: list[str] | None = [] if captures_content else None

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
                semconv.SERVER_ADDRESS: address,
                semconv.ERROR_TYPE: error.kind,
                semconv.NUM_TOKENS: num_tokens,
            },
        )

    def set_result(self, usage: Usage, finish: GenerationFinish | None) -> None:
        """Sets the attributes that are known at the end of the generation."""
        if not self.span.is_recording():
            return
        reason = "" if finish is None else finish.reason.value
        result: dict[str, AttributeValue] = {
            semconv.GEN_AI_USAGE_INPUT_TOKENS: usage.prompt_tokens,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: usage.completion_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_tokens,
        }
        if reason:
            result[semconv.GEN_AI_RESPONSE_FINISH_REASONS] = [reason]
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


def generation(
    encoded: Encoded,
    model: ModelInfo,
    sampling: SamplingParams,
    stop: Sequence[str],
) -> AbstractContextManager[GenerationSpan]:
    """A span from the encoded prompt to the last text. The block may contain `yield`."""
    parent = trace.get_current_span()
    if not telemetry.recorded(parent):
        return nullcontext(GenerationSpan(parent, captures_content=False))
    return _generation(encoded, model, sampling, stop)


@contextmanager
def _generation(
    encoded: Encoded,
    model: ModelInfo,
    sampling: SamplingParams,
    stop: Sequence[str],
) -> Iterator[GenerationSpan]:
    operation = operation_of(encoded)
    attributes = {
        semconv.GEN_AI_OPERATION_NAME: operation,
        semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER,
        semconv.GEN_AI_REQUEST_MODEL: model.name,
        **_request(model, sampling, stop),
    }
    name = f"{operation} {model.name}"
    with tracing.detached_stage(name, attributes, kind=SpanKind.CLIENT) as span:
        captures_content = span.is_recording() and telemetry.captures_content()
        if captures_content and encoded.source is not None:
            messages = json.dumps(_input_messages(encoded.source), ensure_ascii=False)
            span.set_attribute(semconv.GEN_AI_INPUT_MESSAGES, messages)
        yield GenerationSpan(span, captures_content)


def _request(
    model: ModelInfo, sampling: SamplingParams, stop: Sequence[str]
) -> dict[str, AttributeValue]:
    given: dict[str, AttributeValue | None] = {
        semconv.GEN_AI_RESPONSE_MODEL: model.name,
        semconv.GEN_AI_REQUEST_STREAM: True,
        semconv.GEN_AI_REQUEST_MAX_TOKENS: sampling.max_tokens,
        semconv.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        semconv.GEN_AI_REQUEST_TOP_P: sampling.top_p,
        semconv.GEN_AI_REQUEST_TOP_K: sampling.top_k,
        semconv.GEN_AI_REQUEST_SEED: semconv.signed(sampling.seed),
        semconv.GEN_AI_REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
        semconv.GEN_AI_REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
        semconv.GEN_AI_REQUEST_STOP_SEQUENCES: list(stop) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _input_messages(source: ChatPrompt | str) -> list[dict[str, object]]:
    if isinstance(source, str):
        return [_message("user", source)]
    return [_message(message.role, message.content) for message in source.messages]


def _message(role: str, text: str) -> dict[str, object]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}
