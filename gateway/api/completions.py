"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.choices import Events, accepted_event, choice_events, choices, prompts_only
from gateway.openai.chunks import Chunks
from gateway.openai.responses import (
    Choice,
    TextLogprobs,
    check_not_aborted,
    error_frame,
    head,
    response_id,
    resumed,
)
from gateway.schemas.completions import CompletionRequest
from gateway.streaming.event_stream import EventStream
from gateway.upstream.generation import choices_of
from gateway.validation.body import off_loop, read_json
from gateway.validation.json_body import MAX_VALUES_WITH_IDS
from mesh.protocol.deltas import Delta, DeltaLogprob

ROUTE = "/v1/completions"


class Completions:
    """OpenAI's text completions."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, request: Request) -> Response | EventStream:
        """Continue one prompt or several."""
        body = await read_json(
            request,
            CompletionRequest,
            self._dependencies.settings.max_body_bytes,
            MAX_VALUES_WITH_IDS,
        )
        record = RequestRecord.of(request.scope)
        generations = await off_loop(record.body_bytes, body.generations)
        generations = choices_of(generations, response_id("cmpl"), stream=body.stream, n=body.n)
        events = choices(list(map(self._dependencies.orchestrator.generate, generations)))
        if body.max_tokens == 0:
            events = prompts_only(events)
        if body.stream:
            frames = _frames(events, record, body, len(generations))
            return self._dependencies.event_stream(frames, error_frame)
        texts: list[list[str]] = [[] for _ in generations]
        logprobs: list[list[DeltaLogprob]] = [[] for _ in generations]
        ends: list[Choice] = [{} for _ in generations]
        async with self._dependencies.cancel_scope(request), aclosing(events):
            accepted = await accepted_event(events)
            record.accept(ROUTE, accepted.started, body.n)
            async for index, event in choice_events(events):
                if isinstance(event, Delta):
                    record.usage.add(index, event)
                    texts[index].append(event.text)
                    logprobs[index].extend(event.logprobs)
                else:
                    record.finish(index, event)
                    check_not_aborted(event)
                    ends[index] = {"finish_reason": event.reason, **resumed(event)}
        whole = [
            _choice(index, "".join(text), TextLogprobs().of(logprobs[index])) | ends[index]
            for index, text in enumerate(texts)
        ]
        fields = head("cmpl", "text_completion", accepted.model)
        return json_response({**fields, "choices": whole, "usage": record.usage.openai()})


async def _frames(
    events: Events, record: RequestRecord, body: CompletionRequest, num_choices: int
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        accepted = await accepted_event(events)
        record.accept(ROUTE, accepted.started, body.n)
        chunks = Chunks(
            head("cmpl", "text_completion", accepted.model),
            _choice,
            num_choices=num_choices,
            include_usage=body.stream_options.include_usage,
        )
        logprobs = [TextLogprobs() for _ in range(num_choices)]
        # An empty frame sends the status and the headers before there is text.
        yield b""
        async for index, event in choice_events(events):
            if isinstance(event, Delta):
                record.delta(index, event)
                if event.logprobs:
                    formatted = logprobs[index].of(event.logprobs)
                    yield chunks.chunk(_choice(index, event.text, formatted))
                else:
                    yield chunks.text(index, event.text)
            else:
                record.finish(index, event)
                check_not_aborted(event)
                yield chunks.chunk(_choice(index, "", None, event.reason) | resumed(event))
        yield chunks.end(record.usage.openai())


def _choice(
    index: int,
    text: str,
    logprobs: dict[str, object] | None = None,
    finish_reason: str | None = None,
) -> Choice:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
