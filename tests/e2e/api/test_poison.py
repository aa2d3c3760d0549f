"""Requests that a client should not send, one after another."""

from __future__ import annotations

import asyncio

import httpx

from tests.e2e.support.poison import CHAT, poison
from tests.e2e.support.stack import Stack


async def test_a_client_s_mistake_is_its_own(instruct_stack: Stack) -> None:
    """Each is 400 at the first engine, names its field, and no engine is marked lost for it."""
    log = instruct_stack.log("orchestrator")
    begin = len(log.read_text())
    async with httpx.AsyncClient(
        base_url=instruct_stack.url, timeout=60, trust_env=False
    ) as client:

        async def send(name: str, body: dict[str, object]) -> None:
            response = await client.post("/v1/chat/completions", json=body)
            assert response.status_code == 400, (name, response.text)
            error = response.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert error["param"] or "token" in name, (name, error)
            if name == "tool with a lookahead":
                place = "tools[1].function.parameters of 'bad' is not valid: at properties.mail"
                assert error["message"].startswith(place), error

        await asyncio.gather(*(send(name, body) for name, body in poison(1).items()))
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
    events = log.read_text()[begin:]
    for event in ("replica lost", "circuit breaker opened", "engine failed one request"):
        assert event not in events
