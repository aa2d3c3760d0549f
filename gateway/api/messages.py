"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's Messages API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.anthropic.errors import PATH, error_frame
from gateway.anthropic.message import PING, MessageParts, message_id, start_frames
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
from gateway.openai.responses import check_not_aborted
from gateway.schemas.anthropic.messages import CountTokensRequest, MessagesRequest
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_stream import EventStream
from gateway.validation.body import off_loop, read_json
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.deltas import Delta

ROUTE = PATH
COUNT_ROUTE = f"{PATH}/count_tokens"


class Messages:
    """Anthropic's messages."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def create(self, request: Request) -> Response | EventStream:
        """Generate the next message of a conversation."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, MessagesRequest, limit)
        record = RequestRecord.of(request.scope)
        record.ignored = [*record.ignored, *body.unused()]
        generation = await off_loop(record.body_bytes, body.generation)
        generation = generation._replace(api_request=ApiRequest(message_id(), body.stream))
        parts = MessageParts(max_tokens=body.max_tokens, omits_thinking=body.omits_thinking)
        if body.stream and body.max_tokens != 0:
            direct = DirectPath()
            events = direct_choices(self._dependencies.orchestrator, [generation], direct)
            return self._event_stream(_frames(events, record, parts, direct), direct)
        events = choices([self._dependencies.orchestrator.generate(generation)])
        if body.max_tokens == 0:
            events = prompts_only(events)
        if body.stream:
            return self._event_stream(_frames(events, record, parts, DirectPath()))
        async with self._dependencies.cancel_scope(request), aclosing(events):
            accepted = await accepted_event(events)
            record.accept(ROUTE, accepted.started)
            async for _, event in choice_events(events):
                if isinstance(event, Delta):
                    record.usage.add(0, event)
                    parts.add(event)
                else:
                    record.finish(0, event)
                    check_not_aborted(event)
                    finish = event
        return json_response(parts.whole(accepted.model, finish, record.usage.anthropic()))

    def _event_stream(
        self, frames: AsyncGenerator[bytes], direct: DirectPath | None = None
    ) -> EventStream:
        return self._dependencies.event_stream(
            frames, error_frame, keep_alive_frame=PING, direct=direct
        )

    async def count_tokens(self, request: Request) -> Response:
        """Count the tokens of a request without generating."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, CountTokensRequest, limit)
        record = RequestRecord.of(request.scope)
        record.ignored = [*record.ignored, *body.unused()]
        generation = await off_loop(record.body_bytes, body.generation)
        async with self._dependencies.cancel_scope(request):
            num_tokens = await self._dependencies.orchestrator.count_tokens(generation)
        return json_response({"input_tokens": num_tokens})


async def _frames(
    events: Events, record: RequestRecord, parts: MessageParts, direct: DirectPath
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        accepted = await accepted_event(events)
        record.accept(ROUTE, accepted.started)

        def encode(delta: Delta) -> bytes:
            record.delta(0, delta)
            return parts.frames(delta)

        yield start_frames(accepted.model, record.usage.anthropic())
        direct.encode = encode
        async for _, event in choice_events(events):
            if isinstance(event, Delta):
                frames = encode(event)
                if frames:
                    yield frames
            else:
                record.finish(0, event)
                check_not_aborted(event)
                yield parts.last_frames(event, record.usage.anthropic())
