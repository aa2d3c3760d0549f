"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.openai_format import (
    Choice,
    Chunks,
    TextLogprobs,
    check_not_aborted,
    error_frame,
    head,
    usage,
)
from gateway.body import read_json
from gateway.event_stream import EventStream
from gateway.generation import Delta, Event, Finish, Started
from gateway.json_text import json_response
from gateway.observation import Observation
from gateway.schemas.completions import CompletionRequest
from gateway.services import Services, collect, first_event

ROUTE = "/v1/completions"


class Completions:
    """Plain completions, as OpenAI's clients ask for them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, request: Request) -> Response | EventStream:
        """Continues a prompt."""
        body = await read_json(request, CompletionRequest, self._services.settings.max_body_bytes)
        events = self._services.orchestrator.generate(body.generation())
        observation = Observation.of(request.scope)
        if body.stream:
            frames = _frames(events, observation, body.stream_options.include_usage)
            return self._services.event_stream(frames, error_frame)
        async with self._services.interruption(request):
            started, answer = await collect(events, Started)
        observation.finished(answer.finish)
        check_not_aborted(answer.finish)
        logprobs = TextLogprobs().of(answer.logprobs)
        choice = _choice(answer.text, logprobs, answer.finish.reason)
        fields = head("cmpl", "text_completion", started.model)
        return json_response({**fields, "choices": [choice], "usage": usage(answer.finish.usage)})


async def _frames(
    events: AsyncGenerator[Event], observation: Observation, include_usage: bool
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        started = await first_event(events, Started)
        fields = head("cmpl", "text_completion", started.model)
        chunks = Chunks(fields, _choice, include_usage=include_usage)
        logprobs = TextLogprobs()
        # Nothing to say yet, but the status and the headers can go.
        yield b""
        async for event in events:
            if isinstance(event, Delta):
                observation.first_token(ROUTE)
                if event.logprobs:
                    yield chunks.chunk(_choice(event.text, logprobs.of(event.logprobs)))
                else:
                    yield chunks.text(event.text)
            elif isinstance(event, Finish):
                observation.finished(event)
                check_not_aborted(event)
                yield chunks.chunk(_choice("", None, event.reason)) + chunks.end(event)


def _choice(
    text: str, logprobs: dict[str, object] | None = None, finish_reason: str | None = None
) -> Choice:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
