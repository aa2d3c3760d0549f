"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.http.json_text import json_response
from gateway.observability.observation import Observation
from gateway.openai.choices import Accepted, ChoiceEvent, Events, choices, first_of, rest_of
from gateway.openai.chunks import Chunks
from gateway.openai.responses import Choice, TextLogprobs, check_not_aborted, error_frame, head
from gateway.openai.usage import Tally
from gateway.schemas.completions import CompletionRequest
from gateway.services import Services
from gateway.streaming.event_stream import EventStream
from gateway.validation.body import read_json
from mesh.protocol.deltas import Delta, DeltaLogprob
from mesh.protocol.finish import FinishReason, GenerationFinish

ROUTE = "/v1/completions"


class Completions:
    """Plain completions, as OpenAI's clients ask for them."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def create(self, request: Request) -> Response | EventStream:
        """Continues one prompt or several."""
        body = await read_json(request, CompletionRequest, self._services.settings.max_body_bytes)
        generations = body.generations()
        events = choices(list(map(self._services.orchestrator.generate, generations)))
        if body.max_tokens == 0:
            events = _prompts_only(events)
        observation = Observation.of(request.scope)
        if body.stream:
            frames = _frames(events, observation, body, len(generations))
            return self._services.event_stream(frames, error_frame)
        texts: list[list[str]] = [[] for _ in generations]
        logprobs: list[list[DeltaLogprob]] = [[] for _ in generations]
        reasons = [""] * len(generations)
        async with self._services.interruption(request), aclosing(events):
            accepted = await first_of(events)
            tally = Tally(accepted.started, body.n, observation)
            async for index, event in rest_of(events):
                if isinstance(event, Delta):
                    tally.add(index, event)
                    texts[index].append(event.text)
                    logprobs[index].extend(event.logprobs)
                else:
                    tally.finish(index, event)
                    check_not_aborted(event)
                    reasons[index] = event.reason
        whole = [
            _choice(index, "".join(text), TextLogprobs().of(logprobs[index]), reasons[index])
            for index, text in enumerate(texts)
        ]
        fields = head("cmpl", "text_completion", accepted.model)
        return json_response({**fields, "choices": whole, "usage": tally.usage()})


async def _frames(
    events: Events, observation: Observation, body: CompletionRequest, num_choices: int
) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        accepted = await first_of(events)
        tally = Tally(accepted.started, body.n, observation)
        chunks = Chunks(
            head("cmpl", "text_completion", accepted.model),
            _choice,
            num_choices=num_choices,
            include_usage=body.stream_options.include_usage,
        )
        logprobs = [TextLogprobs() for _ in range(num_choices)]
        # Nothing to say yet, but the status and the headers can go.
        yield b""
        async for index, event in rest_of(events):
            if isinstance(event, Delta):
                observation.text(ROUTE)
                tally.add(index, event)
                if event.logprobs:
                    told = logprobs[index].of(event.logprobs)
                    yield chunks.chunk(_choice(index, event.text, told))
                else:
                    yield chunks.text(index, event.text)
            else:
                tally.finish(index, event)
                check_not_aborted(event)
                yield chunks.chunk(_choice(index, "", None, event.reason))
        yield chunks.end(tally.usage())


async def _prompts_only(events: Events) -> Events:
    """What is told of a request for no tokens: of each choice the echo, and that it is over."""
    # The echo is a choice's first delta. A later one without tokens is what was left of a token
    # that ends within a character.
    told: set[int] = set()
    async with aclosing(events):
        async for each in events:
            if isinstance(each, Accepted):
                yield each
            elif isinstance(each.event, GenerationFinish):
                usage = each.event.usage._replace(completion_tokens=0)
                aborted = each.event.reason is FinishReason.ABORT
                reason = FinishReason.ABORT if aborted else FinishReason.LENGTH
                yield ChoiceEvent(each.number, GenerationFinish(reason, usage))
            elif each.number not in told:
                told.add(each.number)
                if not each.event.num_tokens:
                    yield each


def _choice(
    index: int,
    text: str,
    logprobs: dict[str, object] | None = None,
    finish_reason: str | None = None,
) -> Choice:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
