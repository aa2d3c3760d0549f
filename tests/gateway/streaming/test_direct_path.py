"""Deltas that pass the tasks of a response: the same events, accounts and backpressure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.http.server import GatewayServer
from gateway.streaming.direct_path import DirectPath
from mesh.protocol.deltas import Delta
from mesh.v1 import orchestrator_pb2
from tests.gateway.conftest import open_multiplexed
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.sse import Event, events
from tests.helpers import eventually

MESSAGES = [{"role": "user", "content": "Hi"}]
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 99, "model": "fake"},
    "/v1/responses": {"input": "Hi", "store": False},
    "/api/v1/search": {"query": "AI", "streaming": True},
}
CALL = orchestrator_pb2.ToolCallDelta(id="call-1", name="f", arguments="{}")
DELTAS: dict[str, Sequence[Any]] = {
    "/v1/completions": ("a", "é\u2028", "c", "d"),
    "/v1/chat/completions": (
        orchestrator_pb2.Delta(reasoning="why", num_tokens=2),
        orchestrator_pb2.Delta(text="a", num_tokens=1),
        orchestrator_pb2.Delta(tool_calls=[CALL], num_tokens=1),
    ),
    "/v1/messages": (
        orchestrator_pb2.Delta(reasoning="why", num_tokens=2),
        orchestrator_pb2.Delta(text="a", num_tokens=1),
    ),
    "/v1/responses": ("a", "b", "c"),
    "/api/v1/search": ("a", "b", "c"),
}
UNSTABLE = {"id", "item_id", "request_id", "trace_id", "created", "message", "response", "item"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Delta]:
    """The deltas that were written past the tasks."""
    found: list[Delta] = []
    take = DirectPath.take

    def recording(self: DirectPath, delta: Delta) -> bool:
        is_taken = take(self, delta)
        if is_taken:
            found.append(delta)
        return is_taken

    monkeypatch.setattr(DirectPath, "take", recording)
    return found


@asynccontextmanager
async def streaming(client: httpx.AsyncClient, path: str) -> AsyncIterator[AsyncIterator[Event]]:
    """The events of a streamed answer."""
    body = REQUESTS[path] if "streaming" in REQUESTS[path] else {**REQUESTS[path], "stream": True}
    async with client.stream("POST", path, json=body) as response:
        yield events(response)


async def read_all(client: httpx.AsyncClient, path: str, script: Script) -> list[str]:
    """The events of an answer without ids and times, each delta after the event before it."""
    gate = script.gate
    received: list[str] = []
    async with streaming(client, path) as answer:
        async for event in answer:
            received.append(event.text)
            if gate is not None and gate.locked():
                gate.release()
    return [_stable(text) for text in received]


def _stable(text: str) -> str:
    if not text.startswith("{"):
        return text
    return json.dumps({k: v for k, v in json.loads(text).items() if k not in UNSTABLE})


@pytest.mark.parametrize("path", REQUESTS)
async def test_deltas_are_written_as_they_arrive(
    gateway: GatewayServer,
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    taken: list[Delta],
    path: str,
) -> None:
    """Every delta that comes alone is taken, and the client gets what it gets of a plain call."""
    deltas = DELTAS[path]
    orchestrator.script = Script(deltas=deltas)
    plain = await read_all(client, path, orchestrator.script)
    assert not taken
    await open_multiplexed(gateway)
    orchestrator.script = Script(deltas=deltas, gate=asyncio.Semaphore(1))
    direct = await read_all(client, path, orchestrator.script)
    assert direct == plain
    assert len(taken) == len(deltas)


async def test_several_choices_are_not_taken(
    gateway: GatewayServer,
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    taken: list[Delta],
) -> None:
    """Their deltas wait for one another, and their order in each choice is kept."""
    await open_multiplexed(gateway)
    orchestrator.script = Script(deltas=[str(number % 10) for number in range(200)])
    body = {"prompt": "Hi", "stream": True, "n": 3}
    texts = ["", "", ""]
    async with client.stream("POST", "/v1/completions", json=body) as response:
        async for event in events(response):
            for choice in [] if event.text == "[DONE]" else event.data["choices"]:
                texts[choice["index"]] += choice["text"]
    assert texts == ["0123456789" * 20] * 3
    assert not taken


async def test_an_abandoned_stream_is_accounted(
    gateway: GatewayServer,
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    taken: list[Delta],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Usage and time to the first token are in the access line; the call upstream is cancelled."""
    caplog.set_level(logging.INFO)
    await open_multiplexed(gateway)
    gate = asyncio.Semaphore(3)
    orchestrator.script = Script(deltas=["a", "b", "c", "d"], gate=gate)
    async with streaming(client, "/v1/chat/completions") as answer:
        async for event in answer:
            if '"c"' in event.text:
                break
    await eventually(lambda: orchestrator.num_cancelled == 1, "the call is cancelled")
    await eventually(lambda: gateway.dependencies.drain.num_active == 0, "the request ends")
    [line] = [vars(record) for record in caplog.records if record.name == "gateway.access"]
    assert line["completion_tokens"] == 3
    assert line["ttft_seconds"] > 0
    assert len(taken) <= 3
