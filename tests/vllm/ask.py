"""Requests to a stack, and what its engines report."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
import httpx

from mesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from orchestrator.routing.backends.vllm_grpc.client import VllmBackend
from orchestrator.routing.backends.vllm_http.client import VllmHttpBackend
from tests.e2e.support.stack import Stack
from tests.vllm.servers import NAME, VllmServer

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

PROMPTS = [[400 + 31 * number + 7 * step for step in range(5 + number)] for number in range(8)]
"""Prompts of token ids."""

NUM_TOKENS = 48
"""Tokens that vLLM's offline API generates for each prompt."""

GREEDY: dict[str, Any] = {"model": NAME, "temperature": 0, "ignore_eos": True}


async def post(client: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    """The JSON of a response with status 200."""
    response = await client.post(path, json={"model": NAME, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def refused(client: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    """The error of a response with status 400."""
    response = await client.post(path, json={"model": NAME, **fields})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def events_of(client: httpx.AsyncClient, **fields: Any) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed greedy completion."""
    body = {**GREEDY, "stream": True, **fields}
    async with client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


async def completed(
    client: httpx.AsyncClient, prompt: Sequence[int], max_tokens: int, **fields: Any
) -> str:
    """The greedy completion of a prompt."""
    ask = {**GREEDY, "prompt": prompt, "max_tokens": max_tokens, **fields}
    answer = await post(client, COMPLETIONS, **ask)
    assert answer["usage"]["completion_tokens"] == max_tokens
    text: str = answer["choices"][0]["text"]
    return text


async def echoed(client: httpx.AsyncClient, prompt: Sequence[int]) -> str:
    """The text of token ids."""
    answer = await post(client, COMPLETIONS, prompt=prompt, max_tokens=0, echo=True)
    text: str = answer["choices"][0]["text"]
    return text


async def generated(stack: Stack, **fields: Any) -> tuple[str, orchestrator_pb2.GenerateFinish]:
    """Text and finish of a generation by the orchestrator's own API."""
    request = orchestrator_pb2.GenerateRequest(**fields)
    async with grpc.aio.insecure_channel(stack.addresses["orchestrator"]) as channel:
        stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        responses = [response async for response in stub.Generate(request, timeout=120)]
    return "".join(each.delta.text for each in responses), responses[-1].finish


async def load_of(engine: VllmServer) -> int:
    """Requests in the engine, as it reports them."""
    if engine.is_grpc:
        async with grpc.aio.insecure_channel(engine.address) as channel:
            load = await VllmBackend(channel).load()
    else:
        backend = VllmHttpBackend(engine.address, engine.address)
        load = await backend.load()
        await backend.close()
    return load.num_running + load.num_waiting


async def wait_idle(engines: Sequence[VllmServer], seconds: float) -> None:
    """Returns when no engine has a request; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while any([await load_of(engine) for engine in engines]):
        assert time.monotonic() < deadline, f"busy after {seconds} s"
        await asyncio.sleep(0.02)
