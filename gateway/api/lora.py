"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, if the settings allow them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.dependencies import Dependencies
from gateway.schemas.lora import LoadLoraRequest, UnloadLoraRequest
from gateway.validation.body import read_json

LOAD_ROUTE = "/v1/load_lora_adapter"
UNLOAD_ROUTE = "/v1/unload_lora_adapter"


class LoraAdapters:
    """vLLM's management of LoRA adapters, on all replicas of a model."""

    def __init__(self, dependencies: Dependencies) -> None:
        self._dependencies = dependencies

    async def load(self, request: Request) -> Response:
        """Load an adapter; it is served when the response is sent."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, LoadLoraRequest, limit)
        async with self._dependencies.cancel_scope(request):
            await self._dependencies.orchestrator.load_adapter(
                body.lora_name, body.lora_path, body.model
            )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Unload an adapter; running requests that use it continue."""
        limit = self._dependencies.settings.max_body_bytes
        body = await read_json(request, UnloadLoraRequest, limit)
        async with self._dependencies.cancel_scope(request):
            await self._dependencies.orchestrator.unload_adapter(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
