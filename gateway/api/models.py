"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from gateway.dependencies import Dependencies
from gateway.http.json_text import json_response
from gateway.upstream.generation import ServedModel
from mesh.errors import ErrorKind, MeshError


class Models:
    """The served models."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def list(self, request: Request) -> Response:
        """List all models."""
        models = await self._models(request)
        return json_response({"object": "list", "data": [_model(model) for model in models]})

    async def get(self, request: Request) -> Response:
        """Describe one model. Raises MeshError (MODEL_NOT_FOUND)."""
        name = request.path_params["id"]
        models = await self._models(request)
        for model in models:
            if model.name == name:
                return json_response(_model(model))
        raise not_found(name, models)

    async def _models(self, request: Request) -> tuple[ServedModel, ...]:
        async with self._dependencies.cancel_scope(request):
            return await self._dependencies.orchestrator.models()


def not_found(name: str, models: Sequence[ServedModel]) -> MeshError:
    """The error for a model that is not served, as the orchestrator's."""
    names = ", ".join(model.name for model in models) or "none"
    message = f"no model {name!r} is served; served models: {names}"
    return MeshError(ErrorKind.MODEL_NOT_FOUND, message, param="model")


def _model(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "weir",
        "kind": model.kind.value,
        # The field's name in vLLM, which several clients read.
        "max_model_len": model.context_length,
    }
