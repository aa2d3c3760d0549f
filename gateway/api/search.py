"""`/api/v1/search`: finds documents and summarises them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from itertools import count

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.errors import HttpError, error_body
from gateway.http.headers import headers_of
from gateway.http.json_text import json_response
from gateway.observability.request_record import RequestRecord
from gateway.openai.responses import resumed
from gateway.schemas.search import SearchRequest
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_stream import EventStream
from gateway.streaming.resumable_streams import (
    COMPLETE,
    ERROR,
    RESULTS,
    RETRY_MILLISECONDS,
    client_resumes,
    parse_event_id,
)
from gateway.streaming.sse import EVENT_STREAM, named_frame, token_frame, typed_frame
from gateway.upstream.generation import Event, Search, SearchResults
from gateway.validation.body import read_json, read_query
from mesh.accept import prefers
from mesh.context import current_request
from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.observability.telemetry import trace_id
from mesh.protocol.api_request import ApiRequest
from mesh.protocol.deltas import Delta
from mesh.protocol.summary import RelatedQuestions, SearchStage, SearchStatus, SummaryFinish

ROUTE = "/api/v1/search"
EXAMPLES_ROUTE = "/api/v1/examples"
STREAM_ROUTE = "/api/v1/search/{stream}"
JSON = "application/json"


class SearchEndpoint:
    """Search by GET and by POST."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def get(self, request: Request) -> Response | EventStream:
        """Search with the fields of the query string."""
        return await self._answer(request, read_query(request, SearchRequest))

    async def post(self, request: Request) -> Response | EventStream:
        """Search with the fields of a JSON body."""
        limit = self._dependencies.settings.max_body_bytes
        return await self._answer(request, await read_json(request, SearchRequest, limit))

    async def examples(self, request: Request) -> Response:
        """Questions that the documents answer."""
        async with self._dependencies.cancel_scope(request):
            questions = await self._dependencies.orchestrator.examples()
        return json_response({"questions": list(questions)})

    async def stop(self, request: Request) -> Response:
        """Stop a resumable stream at once, instead of after its grace period."""
        stream = request.path_params["stream"]
        if not await self._dependencies.resumable_streams.stop(stream):
            raise HttpError(404, f"there is no stream {stream[:80]!r}", code="not_found")
        return Response(status_code=204)

    async def _answer(self, request: Request, params: SearchRequest) -> Response | EventStream:
        accept = headers_of(request.scope).get("accept", "")
        if params.streaming or prefers(accept, EVENT_STREAM, JSON):
            return await self._stream(request, params)
        events = self._dependencies.orchestrator.search(_search(params, stream=False))
        record = RequestRecord.of(request.scope)
        texts: list[str] = []
        answer: dict[str, object] | None = None
        async with self._dependencies.cancel_scope(request), aclosing(events):
            found = await _results(events)
            record.accept(ROUTE, model=found.model)
            async for event in events:
                match event:
                    case Delta():
                        record.usage.add(0, event)
                        texts.append(event.text)
                    case SummaryFinish():
                        record.finish(0, event)
                        answer = _whole(found, "".join(texts), event, record)
                        if not params.related:
                            break
                    case RelatedQuestions() if answer is not None:
                        answer["related"] = list(event.questions)
        if answer is None:
            raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
        return json_response(answer)

    async def _stream(self, request: Request, params: SearchRequest) -> Response | EventStream:
        resumable_streams = self._dependencies.resumable_streams
        headers = headers_of(request.scope)
        last_event_id = headers.get("last-event-id", "")
        if last_event_id:
            place = parse_event_id(last_event_id, params.num_statuses)
            if place.is_last:
                # The client has every event. 204 makes an EventSource stop reconnecting.
                with suppress(MeshError):  # it ends by itself after its grace period
                    await resumable_streams.stop(place.stream)
                return Response(status_code=204)
            frames = resumable_streams.resume(place)
            return self._dependencies.event_stream(
                frames, partial(_error_frame, f"{place.stream}.")
            )
        record = RequestRecord.of(request.scope)

        direct = DirectPath()

        def make(id_prefix: str) -> AsyncGenerator[bytes]:
            search = _search(params, stream=True)
            # A stream that can be resumed belongs to no connection.
            take = None if id_prefix else direct.take
            events = self._dependencies.orchestrator.search(search, take)
            return _frames(events, record, id_prefix, direct)

        resumable = client_resumes(headers) if params.resumable is None else params.resumable
        if resumable and resumable_streams.accepts:
            frames, id_prefix = resumable_streams.start(make)
        else:
            frames, id_prefix = make(""), ""
        error_frame = partial(_error_frame, id_prefix)
        return self._dependencies.event_stream(frames, error_frame, direct=direct)


def _search(params: SearchRequest, *, stream: bool) -> Search:
    request = current_request()
    request_id = "" if request is None else request.request_id
    return replace(params.search(), api_request=ApiRequest(request_id, stream))


async def _results(events: AsyncGenerator[Event]) -> SearchResults:
    """The results, which report that the search is accepted. Raises MeshError."""
    async for event in events:
        if isinstance(event, SearchResults):
            return event
        if not isinstance(event, SearchStatus):
            break
    raise MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)


async def _frames(
    events: AsyncGenerator[Event], record: RequestRecord, id_prefix: str, direct: DirectPath
) -> AsyncGenerator[bytes]:
    """Frames of one search; with an `id_prefix` the stream can be resumed."""
    positions = count()

    def encode(delta: Delta) -> bytes:
        record.delta(0, delta)
        return token_frame(delta.text, next(positions), id_prefix)

    async with aclosing(events):
        direct.encode = encode
        async for event in events:
            match event:
                case Delta():
                    yield encode(event)
                case SearchStatus():
                    if event.stage is not SearchStage.READING:
                        record.accept(ROUTE)
                    yield typed_frame("status", _status(event))
                case SearchResults():
                    record.accept(ROUTE, model=event.model)
                    retry = RETRY_MILLISECONDS if id_prefix else None
                    fields = {"type": "search_results", **_found(event)}
                    yield named_frame("search_results", fields, id_prefix + RESULTS, retry)
                case SummaryFinish():
                    record.finish(0, event)
                    fields = {"type": "complete", **_end(event, record)}
                    yield named_frame("complete", fields, id_prefix + COMPLETE)
                case RelatedQuestions():
                    fields = {"type": "related", "questions": list(event.questions)}
                    yield typed_frame("related", fields)


def _error_frame(id_prefix: str, error: MeshError) -> bytes:
    fields = error_body(error)["error"]
    assert isinstance(fields, dict)
    error_fields = {name: fields[name] for name in ("message", "type", "code")}
    return named_frame("error", {"type": "error", "error": error_fields}, id_prefix + ERROR)


def _whole(
    found: SearchResults, summary: str, finish: SummaryFinish, record: RequestRecord
) -> dict[str, object]:
    """The fields of the response without streaming."""
    return {
        "query": found.query,
        "status": "completed",
        "search_results": [result._asdict() for result in found.results],
        "summary": summary,
        **_end(finish, record),
        **_searches(found.searches),
    }


def _found(found: SearchResults) -> dict[str, object]:
    return {
        "query": found.query,
        "results": [result._asdict() for result in found.results],
        **_searches(found.searches),
    }


def _status(status: SearchStatus) -> dict[str, object]:
    return {"type": "status", "status": status.stage, **_searches(status.searches)}


def _searches(searches: Sequence[str]) -> dict[str, object]:
    return {"searches": list(searches)} if searches else {}


def _end(finish: SummaryFinish, record: RequestRecord) -> dict[str, object]:
    request = current_request()
    return {
        "finish_reason": finish.reason,
        "citations": list(finish.citations),
        "citation_details": [
            {
                "n": each.number,
                "span": each.span,
                "supported": each.span is not None,
                "attributed": each.attributed,
                "sentence": each.sentence,
            }
            for each in finish.citation_details
        ],
        "nothing_found": finish.nothing_found,
        "usage": finish.usage._asdict(),
        **resumed(finish),
        "request_id": "" if request is None else request.request_id,
        "trace_id": trace_id(),
        "trace_sampled": record.is_traced() or False,
    }
