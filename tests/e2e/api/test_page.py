"""The search page in Chromium, served by the four processes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from mesh.v1 import inference_pb2, inference_pb2_grpc
from tests.browser import Browser, browser, needs_chromium
from tests.e2e.support.stack import Stack
from tests.gateway.proxy import proxy

pytestmark = [needs_chromium, pytest.mark.timeout(600)]

TIMEOUT_SECONDS = 180.0


async def until(call, what: str):  # type: ignore[no-untyped-def]
    """Calls `call` in a thread until its result is true; returns the result."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (answer := await asyncio.to_thread(call)):
                await asyncio.sleep(0.05)
            return answer
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


async def num_running(inference: inference_pb2_grpc.InferenceServiceAsyncStub) -> int:
    """Sequences that run or wait in the engine."""
    load = await inference.GetLoad(inference_pb2.GetLoadRequest())
    return load.num_requests_running + load.num_requests_waiting


def type_query(tab: Browser, query: str) -> None:
    """Types a query and clicks the search button."""
    tab.one("#query").clear()
    tab.one("#query").send_keys(query)
    tab.one("#search").click()


async def test_a_search_from_query_to_stop(
    stack: Stack, inference: inference_pb2_grpc.InferenceServiceAsyncStub, tmp_path: Path
) -> None:
    """Results appear, the text grows, Stop aborts the sequence; the next search completes."""
    with browser(tmp_path) as tab:
        await asyncio.to_thread(tab.driver.get, stack.url)
        await asyncio.to_thread(type_query, tab, "what is backpressure")
        await until(lambda: len(tab.all("#results .passage")) == 5, "results are shown")
        one = await until(lambda: len(tab.text("#summary")), "text is shown")
        await until(lambda: len(tab.text("#summary")) > one + 10, "the text grows")
        assert await num_running(inference) == 1
        await asyncio.to_thread(lambda: tab.one("#stop").click())
        async with asyncio.timeout(10):
            while await num_running(inference):
                await asyncio.sleep(0.02)
        await until(lambda: "Stopped" in tab.text("#status"), "the page says so")

        await asyncio.to_thread(type_query, tab, "kubernetes")
        await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
        assert await asyncio.to_thread(tab.all, ".citation")
        await asyncio.to_thread(tab.run, "document.querySelector('.current details').open = true")
        figures = await asyncio.to_thread(tab.text, "#figures")
        assert "First token" in figures
        assert "tokens/s" in figures
        assert await asyncio.to_thread(tab.errors) == []


async def test_a_connection_lost_in_mid_stream(
    stack: Stack, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    """The page resumes the stream: the text equals that of an uninterrupted stream."""
    query = "how does a queue differ from a stream"
    answer = await client.get("/api/v1/search", params={"query": query})
    whole = [stream async for stream in token_events(client, query)]
    assert "".join(whole) == answer.json()["summary"]
    port = int(stack.url.rpartition(":")[2])
    async with proxy(port) as network:
        with browser(tmp_path) as tab:
            await asyncio.to_thread(tab.driver.get, f"http://127.0.0.1:{network.port}/")
            network.cut_after = (b"event: token", 5)
            await asyncio.to_thread(type_query, tab, query)
            await until(lambda: "Done" in tab.text("#status"), "the answer is complete")
            assert network.cut_after is None, "the connection was never lost"
            shown = await asyncio.to_thread(tab.text, "#summary")
    assert letters(shown) == letters("".join(whole))


async def token_events(client: httpx.AsyncClient, query: str) -> AsyncIterator[str]:
    """The tokens of an uninterrupted stream."""
    params = {"query": query, "streaming": "true"}
    async with client.stream("GET", "/api/v1/search", params=params) as response:
        async for line in response.aiter_lines():
            if line.startswith('data: {"type":"token"'):
                yield json.loads(line.removeprefix("data: "))["token"]


def letters(text: str) -> str:
    """The word characters of a text; the page may format citations and spaces differently."""
    return re.sub(r"[^\w]", "", text)
