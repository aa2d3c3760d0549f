"""Weir in front of vLLMs that serve embeddings, one by gRPC and one by HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.support.stack import Stack
from tests.vllm.ask import PROMPTS, post
from tests.vllm.servers import NAME, VllmServer, vllm_servers

POOLING = ["--runner", "pooling", "--convert", "embed"]
TEXTS = ["A river flows to the sea.", "Streams of water", "The weather today"]


@pytest.fixture(scope="module")
def both(executable: Path, model: Path, logs: Path) -> Iterator[list[VllmServer]]:
    """An engine by gRPC and one by HTTP, with the same weights."""
    with vllm_servers(executable, model, logs, [["--grpc", *POOLING], POOLING]) as servers:
        yield servers


@pytest.fixture(scope="module", params=["grpc", "http"])
def engines(both: list[VllmServer], request: pytest.FixtureRequest) -> list[VllmServer]:
    """The engine of one protocol."""
    return [engine for engine in both if engine.is_grpc == (request.param == "grpc")]


@pytest.fixture
async def direct(both: list[VllmServer]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of vLLM's own HTTP API."""
    [engine] = [engine for engine in both if not engine.is_grpc]
    async with httpx.AsyncClient(
        base_url=f"http://{engine.address}", timeout=120, trust_env=False
    ) as client:
        yield client


async def test_embeddings_are_vllms(client: httpx.AsyncClient, direct: httpx.AsyncClient) -> None:
    """A batch of token ids through Weir gives the vectors and the usage of vLLM itself."""
    answer = await post(client, "/v1/embeddings", input=PROMPTS[:3])
    wanted = await post(direct, "/v1/embeddings", input=PROMPTS[:3])
    vectors = [each["embedding"] for each in answer["data"]]
    assert len(vectors) == 3
    for vector, other in zip(vectors, wanted["data"], strict=True):
        assert vector == pytest.approx(other["embedding"], abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, PROMPTS[:3]))
    assert answer["model"] == NAME


async def test_rerank_uses_them(client: httpx.AsyncClient) -> None:
    """A document that is the query comes first, with a similarity of 1."""
    answer = await post(client, "/v1/rerank", query=TEXTS[1], documents=TEXTS)
    first = answer["results"][0]
    assert first["index"] == 1
    assert first["relevance_score"] == pytest.approx(1, abs=1e-3)


async def test_generation_is_refused(client: httpx.AsyncClient, stack: Stack) -> None:
    """An engine for embeddings generates no text: the error says so, and the engine stays."""
    body = {"model": NAME, "prompt": PROMPTS[0], "max_tokens": 2}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 400, response.text
    assert "gener" in response.json()["error"]["message"]
    assert (await client.get("/readyz")).status_code == 200
    await post(client, "/v1/embeddings", input=PROMPTS[0])
