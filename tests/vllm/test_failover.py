"""Streams that continue at an engine of another kind, on the same weights in float32."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from orchestrator.routing.backends.weir import WeirBackend
from tests.e2e.support.stack import Stack
from tests.helpers import eventually
from tests.vllm.ask import PROMPTS, completed, events_of, load_of
from tests.vllm.servers import VllmServer, vllm_servers

NUM_TOKENS = 400

VARIED: dict[str, Any] = {"repetition_penalty": 1.3}
"""Without it the small model repeats one token, and a token lost or sent twice would not show."""


@pytest.fixture(scope="module")
def engines(executable: Path, model: Path, logs: Path) -> Iterator[list[VllmServer]]:
    """One by gRPC, one by HTTP."""
    with vllm_servers(executable, model, logs, [["--grpc"], []]) as servers:
        yield servers


@asynccontextmanager
async def beside_weir(
    engine: VllmServer, settings: dict[str, str], folder: Path
) -> AsyncIterator[tuple[Stack, httpx.AsyncClient]]:
    """A stack with a vLLM and Weir's own engine, both ready."""
    stack = Stack(folder, None, settings)
    stack._environment["INFERENCE_HOST"] = f"{engine.target},{stack.addresses['inference']}"
    try:
        stack.start()
        stack.wait_ready()
        metrics = f"http://{stack.metrics['orchestrator']}/metrics"

        def both_ready() -> bool:
            return "orchestrator_replicas_ready 2.0" in httpx.get(metrics, timeout=5).text

        await eventually(both_ready, "both engines are ready", 240.0)
        client = httpx.AsyncClient(base_url=stack.url, timeout=300, trust_env=False)
        async with client:
            yield stack, client
    finally:
        stack.stop()


async def resumed_text(
    client: httpx.AsyncClient, on_engine: Callable[[], Awaitable[int]], lose: Callable[[], object]
) -> tuple[list[int], str]:
    """Prompt and text of a stream that runs where `on_engine` counts it, and then `lose` is called.

    Prompts prefer different engines: they are tried until one prefers that engine.
    """
    for prompt in PROMPTS:
        events = events_of(client, prompt=prompt, max_tokens=NUM_TOKENS, **VARIED)
        text = (await anext(events))["choices"][0]["text"]
        if not await on_engine():
            await events.aclose()  # type: ignore[attr-defined]
            continue
        lose()
        number = 0
        async for chunk in events:
            for choice in chunk["choices"]:
                text += choice["text"]
                number += choice.get("x-weir-resumed", 0)
        assert number == 1
        return prompt, text
    raise AssertionError("no prompt prefers the engine")


async def test_from_vllm_to_weir_and_back(
    engines: list[VllmServer], stack_settings: dict[str, str], tmp_path: Path
) -> None:
    """The greedy text is the one without a failure, whatever engine it comes from."""
    by_grpc, by_http = engines
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    async with beside_weir(by_grpc, stack_settings, tmp_path / "1") as (_, client):
        wanted = await asyncio.gather(
            *(completed(client, p, NUM_TOKENS, **VARIED) for p in PROMPTS)
        )
        texts = dict(zip(map(tuple, PROMPTS), wanted, strict=True))
        prompt, text = await resumed_text(client, lambda: load_of(by_grpc), by_grpc.kill)
        assert text == texts[tuple(prompt)]
        alone = await completed(client, prompt, NUM_TOKENS, **VARIED)  # by Weir's engine
        assert alone == text
    async with beside_weir(by_http, stack_settings, tmp_path / "2") as (stack, client):

        async def on_weir() -> int:
            async with grpc.aio.insecure_channel(stack.addresses["inference"]) as channel:
                return (await WeirBackend(channel).load()).num_running

        prompt, text = await resumed_text(client, on_weir, stack.processes["inference"].kill)
        assert text == texts[tuple(prompt)]
        alone = await completed(client, prompt, NUM_TOKENS, **VARIED)  # by vLLM
        assert alone == text
        prompts: Any = await asyncio.gather(*(completed(client, p, 100, **VARIED) for p in PROMPTS))
        assert [texts[tuple(p)].startswith(t) for p, t in zip(PROMPTS, prompts, strict=True)] == [
            True
        ] * len(PROMPTS)
