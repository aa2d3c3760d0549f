"""`/api/v1/search`: documents, then a summary of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from gateway.body import read_json, read_query
from gateway.errors import error_body
from gateway.event_stream import EventStream
from gateway.generation import Delta, Event, Finish, SearchResults
from gateway.json_text import json_response
from gateway.observation import Observation
from gateway.schemas.search import SearchRequest
from gateway.services import Services, collect, first_event
from gateway.sse import named_frame, token_frame
from mesh.context import current_request
from mesh.errors import MeshError
from mesh.telemetry import trace_id

ROUTE = "/api/v1/search"
EVENT_STREAM = "text/event-stream"


class SearchEndpoint:
    """Search, by GET and by POST."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def get(self, request: Request) -> Response | EventStream:
        """The fields come as a query string."""
        return await self._answer(request, read_query(request, SearchRequest))

    async def post(self, request: Request) -> Response | EventStream:
        """The fields come as a JSON object."""
        limit = self._services.settings.max_body_bytes
        return await self._answer(request, await read_json(request, SearchRequest, limit))

    async def _answer(self, request: Request, asked: SearchRequest) -> Response | EventStream:
        events = self._services.orchestrator.search(asked.search())
        observation = Observation.of(request.scope)
        if asked.streaming or EVENT_STREAM in request.headers.get("accept", ""):
            return self._services.event_stream(_frames(events, observation), _error_frame)
        async with self._services.interruption(request):
            found, answer = await collect(events, SearchResults)
        observation.finished(answer.finish)
        fields = {
            "query": found.query,
            "status": "completed",
            "search_results": _results(found),
            "summary": answer.text,
            **_end(answer.finish),
        }
        return json_response(fields)


async def _frames(events: AsyncGenerator[Event], observation: Observation) -> AsyncGenerator[bytes]:
    async with aclosing(events):
        found = await first_event(events, SearchResults)
        fields = {"query": found.query, "results": _results(found)}
        yield named_frame("search_results", {"type": "search_results", **fields})
        position = 0
        async for event in events:
            if isinstance(event, Delta):
                observation.first_token(ROUTE)
                yield token_frame(event.text, position)
                position += 1
            elif isinstance(event, Finish):
                observation.finished(event)
                yield named_frame("complete", {"type": "complete", **_end(event)})


def _error_frame(error: MeshError) -> bytes:
    fields = error_body(error)["error"]
    assert isinstance(fields, dict)
    told = {name: fields[name] for name in ("message", "type", "code")}
    return named_frame("error", {"type": "error", "error": told})


def _results(found: SearchResults) -> list[dict[str, object]]:
    return [result._asdict() for result in found.results]


def _end(finish: Finish) -> dict[str, object]:
    request = current_request()
    return {
        "finish_reason": finish.reason,
        "citations": list(finish.citations),
        "citation_details": [
            {
                "n": each.number,
                "span": each.span,
                "supported": each.span is not None,
                "sentence": each.sentence,
            }
            for each in finish.citation_details
        ],
        "usage": finish.usage._asdict(),
        "request_id": "" if request is None else request.request_id,
        "trace_id": trace_id(),
    }
