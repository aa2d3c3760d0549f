"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.choices import Events, accepted_event, choice_events, choices, direct_choices
from gateway.openai.chunks import Chunks
from gateway.openai.responses import (
    Choice,
    ToolCalls,
    chat_logprobs,
    check_not_aborted,
    error_frame,
    head,
    response_id,
    resumed,
    tool_call_delta,
)
from gateway.schemas.chat import ChatCompletionRequest
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_stream import EventStream
from gateway.upstream.generation import choices_of
from gateway.validation.body import off_loop, read_json
from mesh.protocol.deltas import Delta, DeltaLogprob
from mesh.protocol.finish import GenerationFinish

ROUTE = "/v1/chat/completions"


class ChatCompletions:
    """OpenAI's chat completions."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, request: Request) -> Response | EventStream:
        """Generate the choices of a chat completion."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, ChatCompletionRequest, limit)
        record = RequestRecord.of(request.scope)
        generations = await off_loop(record.body_bytes, body.generations)
        generations = choices_of(generations, response_id("chatcmpl"), stream=body.stream, n=body.n)
        orchestrator = self._dependencies.orchestrator
        if body.stream:
            direct = DirectPath()
            events = direct_choices(orchestrator, generations, direct)
            frames = _frames(events, record, body.n, body.stream_options.include_usage, direct)
            return self._dependencies.event_stream(frames, error_frame, direct=direct)
        events = choices(list(map(orchestrator.generate, generations)))
        messages = [_Message(index) for index in range(body.n)]
        async with self._dependencies.cancel_scope(request), aclosing(events):
            accepted = await accepted_event(events)
            record.accept(ROUTE, accepted.started, body.n)
            async for index, event in choice_events(events):
                if isinstance(event, Delta):
                    record.usage.add(index, event)
                    messages[index].add(event)
                else:
                    record.finish(index, event)
                    check_not_aborted(event)
                    messages[index].finish = event
        fields = head("chatcmpl", "chat.completion", accepted.model)
        whole = [message.choice() for message in messages]
        return json_response({**fields, "choices": whole, "usage": record.usage.openai()})


class _Message:
    """One choice, assembled from its deltas."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls = ToolCalls()
        self._logprobs: list[DeltaLogprob] = []
        self.finish: GenerationFinish | None = None

    def add(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self._reasoning.append(delta.reasoning)
        self._calls.add(delta.tool_calls)
        self._logprobs.extend(delta.logprobs)

    def choice(self) -> Choice:
        finish = self.finish
        assert finish is not None, "every choice has a finish"
        text = "".join(self._texts)
        message: dict[str, object] = {
            "role": "assistant",
            "content": None if self._calls and not text else text,
            "refusal": None,
        }
        if any(self._reasoning):
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self._calls.whole()
        return {
            "index": self._index,
            "message": message,
            "logprobs": chat_logprobs(self._logprobs),
            "finish_reason": _reason(finish.reason, calls=bool(self._calls)),
            **resumed(finish),
        }


async def _frames(
    events: Events, record: RequestRecord, n: int, include_usage: bool, direct: DirectPath
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        accepted = await accepted_event(events)
        record.accept(ROUTE, accepted.started, n)
        fields = head("chatcmpl", "chat.completion.chunk", accepted.model)
        chunks = Chunks(fields, _text_choice, num_choices=n, include_usage=include_usage)
        called = [False] * n
        role: dict[str, object] = {"role": "assistant", "content": ""}

        def frame(delta: Delta, index: int = 0) -> bytes:
            record.delta(index, delta)
            if not (delta.logprobs or delta.reasoning or delta.tool_calls):
                return chunks.text(index, delta.text)
            called[index] = called[index] or bool(delta.tool_calls)
            return chunks.chunk(_delta_choice(index, delta))

        yield b"".join(chunks.chunk(_choice(index, role)) for index in range(n))
        direct.encode = frame
        async for index, event in choice_events(events):
            if isinstance(event, Delta):
                yield frame(event, index)
            else:
                record.finish(index, event)
                check_not_aborted(event)
                reason = _reason(event.reason, calls=called[index])
                yield chunks.chunk(_choice(index, {}, reason) | resumed(event))
        yield chunks.end(record.usage.openai())


def _reason(reason: str, *, calls: bool) -> str:
    return "tool_calls" if calls and reason == "stop" else reason


def _delta_choice(index: int, event: Delta) -> Choice:
    delta: dict[str, object] = {}
    if event.text:
        delta["content"] = event.text
    if event.reasoning:
        delta["reasoning_content"] = event.reasoning
    if event.tool_calls:
        delta["tool_calls"] = list(map(tool_call_delta, event.tool_calls))
    return {**_choice(index, delta), "logprobs": chat_logprobs(event.logprobs)}


def _text_choice(index: int, text: str) -> Choice:
    return _choice(index, {"content": text})


def _choice(index: int, delta: dict[str, object], finish_reason: str | None = None) -> Choice:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
