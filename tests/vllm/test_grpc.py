"""Weir in front of two `vllm serve --grpc`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.vllm.ask import PROMPTS, completed, events_of, load_of, refused
from tests.vllm.checks import RequestChecks
from tests.vllm.servers import VllmServer, vllm_servers


@pytest.fixture(scope="module")
def engines(
    executable: Path, model: Path, logs: Path, offline: list[list[int]]
) -> Iterator[list[VllmServer]]:
    """Two engines. Their protocol is found, not configured."""
    with vllm_servers(executable, model, logs, [["--grpc"], ["--grpc"]]) as servers:
        for server in servers:
            server.target = server.address
        yield servers


class TestGrpc(RequestChecks):
    """Every kind of request; the last test loses an engine."""

    async def test_embeddings_need_a_pooling_model(self, client: httpx.AsyncClient) -> None:
        """The refusal is vLLM's."""
        error = await refused(client, "/v1/embeddings", input="text")
        assert error["param"] == "input"
        assert "pooling" in error["message"]

    async def test_a_killed_engines_streams_continue(
        self, client: httpx.AsyncClient, engines: list[VllmServer]
    ) -> None:
        """SIGKILL of one of two engines under 8 streams: every text is the undisturbed one."""
        wanted = await asyncio.gather(*(completed(client, each, 500) for each in PROMPTS))
        texts = ["" for _ in PROMPTS]
        resumed = [0 for _ in PROMPTS]
        running = asyncio.Barrier(len(PROMPTS) + 1)

        async def read(number: int) -> None:
            async for chunk in events_of(client, prompt=PROMPTS[number], max_tokens=500):
                if not texts[number]:
                    await running.wait()
                for choice in chunk["choices"]:
                    texts[number] += choice["text"]
                    resumed[number] += choice.get("x-weir-resumed", 0)

        async with asyncio.TaskGroup() as tasks:
            for number in range(len(PROMPTS)):
                tasks.create_task(read(number))
            await running.wait()
            loads = [await load_of(engine) for engine in engines]
            assert min(loads) > 0, loads
            engines[0].kill()
        assert texts == wanted
        assert sum(resumed) == loads[0], resumed
