"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.choices import (
    Events,
    accepted_event,
    choice_events,
    choices,
    direct_choices,
    prompts_only,
)
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
from gateway.streaming.direct_path import DirectPath
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
        orchestrator = self._dependencies.orchestrator
        if body.stream and body.max_tokens != 0:
            direct = DirectPath()
            events = direct_choices(orchestrator, generations, direct)
            frames = _frames(events, record, body, len(generations), direct)
            return self._dependencies.event_stream(frames, error_frame, direct=direct)
        events = choices(list(map(orchestrator.generate, generations)))
        if body.max_tokens == 0:
            events = prompts_only(events)
        if body.stream:
            frames = _frames(events, record, body, len(generations), DirectPath())
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
    events: Events,
    record: RequestRecord,
    body: CompletionRequest,
    num_choices: int,
    direct: DirectPath,
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

        def frame(delta: Delta, index: int = 0) -> bytes:
            record.delta(index, delta)
            if not delta.logprobs:
                return chunks.text(index, delta.text)
            formatted = logprobs[index].of(delta.logprobs)
            return chunks.chunk(_choice(index, delta.text, formatted))

        # An empty frame sends the status and the headers before there is text.
        yield b""
        direct.encode = frame
        async for index, event in choice_events(events):
            if isinstance(event, Delta):
                yield frame(event, index)
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
