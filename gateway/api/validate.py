"""`/api/v1/validate`: validates a search without running it."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.models import not_found
from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.schemas.search import SearchRequest
from gateway.validation.body import read_object
from gateway.validation.problems import problems_of
from mesh.errors import MeshError

ROUTE = "/api/v1/validate"


class ValidateEndpoint:
    """Validation of a search's input."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def check(self, request: Request) -> Response:
        """Validate the body of a search.

        Raises MeshError if it is not a JSON object, or names a model and the served ones are not
        known.
        """
        fields, problem = await read_object(request, self._dependencies.settings.max_body_bytes)
        query, problems = None, [problem] if problem is not None else list[MeshError]()
        if not problems:
            try:
                search = SearchRequest.model_validate(fields, strict=True)
                problems = await self._problems_of_model(request, search.model)
                query = None if problems else search.query
            except ValidationError as error:
                problems = problems_of(error)
        found = [{"param": each.param, "message": each.message} for each in problems]
        return json_response({"valid": not found, "query": query, "problems": found})

    async def _problems_of_model(self, request: Request, name: str) -> list[MeshError]:
        if not name:
            return []
        async with self._dependencies.cancel_scope(request):
            models = await self._dependencies.orchestrator.models()
        return [] if name in {model.name for model in models} else [not_found(name, models)]
