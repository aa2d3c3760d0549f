"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator

LOAD = "/v1/load_lora_adapter"
UNLOAD = "/v1/unload_lora_adapter"


async def test_the_routes_exist_only_if_allowed(client: httpx.AsyncClient) -> None:
    """By default they are unknown paths."""
    for path in (LOAD, UNLOAD):
        answer = await client.post(path, json={"lora_name": "a", "lora_path": "b"})
        assert answer.status_code == 404


async def test_an_adapter_is_loaded_and_unloaded(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator
) -> None:
    """With vLLM's fields and answers."""
    async with start_gateway(allow_runtime_lora=True) as server, client_of(server) as client:
        asked = {"lora_name": "a", "lora_path": "/adapters/a"}
        loaded = await client.post(LOAD, json=asked)
        assert (loaded.status_code, loaded.text) == (
            200,
            "Success: LoRA adapter 'a' added successfully.",
        )
        removed = await client.post(UNLOAD, json={"lora_name": "a", "lora_int_id": 1})
        assert removed.text == "Success: LoRA adapter 'a' removed successfully."
    assert orchestrator.adapter_calls == [("load", "a", "/adapters/a"), ("unload", "a", "")]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"lora_name": "a"}, "lora_path"),
        ({"lora_name": "", "lora_path": "b"}, "lora_name"),
        ({"lora_name": "a" * 257, "lora_path": "b"}, "lora_name"),
    ],
)
async def test_bad_bodies_are_named(
    body: dict[str, str], field: str, start_gateway: StartGateway
) -> None:
    """By the field."""
    async with start_gateway(allow_runtime_lora=True) as server, client_of(server) as client:
        refused = await client.post(LOAD, json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == field
