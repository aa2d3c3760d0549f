"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.openai_format import (
    Choice,
    Chunks,
    chat_logprobs,
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
from gateway.schemas.chat import ChatCompletionRequest
from gateway.services import Services, collect, first_event

ROUTE = "/v1/chat/completions"


class ChatCompletions:
    """Chat, as OpenAI's clients ask for it."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, request: Request) -> Response | EventStream:
        """Answers a chat."""
        limit = self._services.settings.max_body_bytes
        body = await read_json(request, ChatCompletionRequest, limit)
        events = self._services.orchestrator.generate(body.generation())
        observation = Observation.of(request.scope)
        if body.stream:
            frames = _frames(events, observation, body.stream_options.include_usage)
            return self._services.event_stream(frames, error_frame)
        async with self._services.interruption(request):
            started, answer = await collect(events, Started)
        observation.finished(answer.finish)
        check_not_aborted(answer.finish)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": chat_logprobs(answer.logprobs),
            "finish_reason": answer.finish.reason,
        }
        fields = head("chatcmpl", "chat.completion", started.model)
        return json_response({**fields, "choices": [choice], "usage": usage(answer.finish.usage)})


async def _frames(
    events: AsyncGenerator[Event], observation: Observation, include_usage: bool
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        started = await first_event(events, Started)
        fields = head("chatcmpl", "chat.completion.chunk", started.model)
        chunks = Chunks(fields, _text_choice, include_usage=include_usage)
        yield chunks.chunk(_choice({"role": "assistant", "content": ""}))
        async for event in events:
            if isinstance(event, Delta):
                observation.first_token(ROUTE)
                if event.logprobs:
                    logprobs = chat_logprobs(event.logprobs)
                    yield chunks.chunk({**_text_choice(event.text), "logprobs": logprobs})
                else:
                    yield chunks.text(event.text)
            elif isinstance(event, Finish):
                observation.finished(event)
                check_not_aborted(event)
                yield chunks.chunk(_choice({}, event.reason)) + chunks.end(event)


def _text_choice(text: str) -> Choice:
    return _choice({"content": text})


def _choice(delta: dict[str, object], finish_reason: str | None = None) -> Choice:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
