"""`POST /v1/responses`; `GET`, `DELETE`, cancel and input items of `/v1/responses/{id}`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gateway.conversations.store import RUNNING, StoredResponse
from gateway.dependencies import Dependencies
from gateway.http.errors import HttpError
from gateway.http.json_text import encoded_response, json_response
from gateway.keys.owner import owner_of
from gateway.observability.request_record import RequestRecord
from gateway.responses.background.event_reader import response_of
from gateway.responses.conversation import conversation
from gateway.responses.input_items import input_page, with_included
from gateway.responses.kept import NO_ITEMS, input_and_output, items_of, output_of, with_items
from gateway.responses.run import ROUTE, Run
from gateway.schemas.responses.items import parse_item
from gateway.schemas.responses.queries import LISTS, InputItemsQuery, RetrieveQuery
from gateway.schemas.responses.request import ResponsesRequest
from gateway.streaming.direct_path import DirectPath
from gateway.streaming.event_stream import EventStream
from gateway.validation.body import off_loop, read_json, read_query
from mesh.errors import invalid

__all__ = ["CANCEL_ROUTE", "INPUT_ROUTE", "ONE_ROUTE", "ROUTE", "Responses"]

ONE_ROUTE = "/v1/responses/{id}"
CANCEL_ROUTE = "/v1/responses/{id}/cancel"
INPUT_ROUTE = "/v1/responses/{id}/input_items"


class Responses:
    """OpenAI's responses."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies
        self._kept = dependencies.responses

    async def create(self, request: Request) -> Response | EventStream:
        """Generate a response, at once or in the background."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, ResponsesRequest, limit)
        record = RequestRecord.of(request.scope)
        record.ignored = [*record.ignored, *body.dropped()]
        owner = owner_of(request.scope)
        stored = await self._previous(body, owner)
        num_bytes = record.body_bytes + (0 if stored is None else len(stored.items))
        previous, run = await off_loop(num_bytes, lambda: self._run(body, stored, record))
        if body.background:
            items = with_items(previous, body.input_items())
            queued = await self._kept.start(owner, run, items)
            if body.stream:
                return await self._events(owner, run.response.id)
            return encoded_response(queued)
        if body.store:
            run.on_end = lambda response: self._kept.keep(
                owner, run, response, with_items(previous, body.input_items())
            )
        if body.stream:
            direct = DirectPath()
            return self._dependencies.event_stream(run.steps(direct), run.failed, direct=direct)
        async with self._dependencies.cancel_scope(request):
            async for _ in run.steps():
                pass
        return encoded_response(run.result)

    async def get(self, request: Request) -> Response | EventStream:
        """Return a stored response, or the events of one in the background."""
        query = read_query(request, RetrieveQuery, LISTS)
        owner, id = owner_of(request.scope), request.path_params["id"]
        if query.stream:
            return await self._events(owner, id, query.begin)
        stored = await self._kept.find(owner, id)
        response = response_of(stored)
        if query.include:
            _, output = await off_loop(len(stored.items), lambda: input_and_output(stored))
            with_included(output_of(response), output, query.include)
        return json_response(response)

    async def input_items(self, request: Request) -> Response:
        """List what a stored response was generated from."""
        query = read_query(request, InputItemsQuery, LISTS)
        stored = await self._kept.find(owner_of(request.scope), request.path_params["id"])
        given, _ = await off_loop(len(stored.items), lambda: input_and_output(stored))
        return json_response(input_page(given, query))

    async def _events(self, owner: str, id: str, begin: int = 0) -> EventStream:
        reader = await self._kept.reader(owner, id, begin)
        return self._dependencies.event_stream(reader.frames(), reader.failed)

    async def cancel(self, request: Request) -> Response:
        """End a response in the background."""
        owner, id = owner_of(request.scope), request.path_params["id"]
        return json_response(await self._kept.cancel(owner, id))

    async def delete(self, request: Request) -> Response:
        """Delete a stored response."""
        id = request.path_params["id"]
        await self._kept.delete(owner_of(request.scope), id)
        return json_response({"id": id, "object": "response", "deleted": True})

    def _run(
        self, body: ResponsesRequest, stored: StoredResponse | None, record: RequestRecord
    ) -> tuple[bytes, Run]:
        """The items of the conversation that the request continues, as stored, and its run."""
        previous = [] if stored is None else items_of(stored)
        messages = conversation(body.instructions, map(parse_item, previous), body.input)
        if not messages:
            raise invalid("input", "input must have at least 1 message, given none")
        run = Run(body, messages, self._dependencies.orchestrator, record)
        return NO_ITEMS if stored is None else stored.items, run

    async def _previous(self, body: ResponsesRequest, owner: str) -> StoredResponse | None:
        """The response that the request continues. Raises HttpError (404) or MeshError."""
        id = body.previous_response_id
        if id is None:
            return None
        stored = await self._kept.get(owner, id)
        if stored is None:
            message = f"Previous response with id {id[:80]!r} not found."
            field = "previous_response_id"
            raise HttpError(404, message, code="previous_response_not_found", param=field)
        if stored.status in RUNNING and not stored.abandoned:
            raise invalid(
                "previous_response_id",
                "previous_response_id must be of a complete response, given one in progress",
            )
        limit = self._dependencies.settings.max_body_bytes
        if len(stored.items) > limit:
            raise invalid(
                "previous_response_id",
                f"previous_response_id must be of a conversation of at most {limit} bytes, given "
                f"{len(stored.items)}",
            )
        return stored
