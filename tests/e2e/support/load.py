"""A scripted load that makes each outcome, and what its client recorded of every request."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from mesh.rpc.channel import open_channel
from mesh.v1 import common_pb2, orchestrator_pb2, orchestrator_pb2_grpc

KEY, LIMITED_KEY = "weir_load", "weir_limited"
MAX_CONCURRENT = 6
"""Requests that the orchestrator admits at once."""

QUESTION = "What is a token?"
CHAT = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16}
COMPLETION = {"model": "demo", "prompt": "A token is", "max_tokens": 16}
SEARCH = {"query": QUESTION, "max_tokens": 16}

ROUTES = {
    "chat": "/v1/chat/completions",
    "text_completion": "/v1/completions",
    "search": "/api/v1/search",
    "embeddings": "/v1/embeddings",
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request, as its client saw it."""

    operation: str
    status: int
    seconds: float
    ttft: float | None = None
    """Seconds to the first text of a stream."""
    input_tokens: int = 0
    output_tokens: int = 0
    trace_id: str = ""


def write_keys(folder: Path) -> Path:
    """A key file with an unlimited key, and one that may send a request in ten seconds."""
    file = folder / "keys.toml"
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in _KEYS.items()}
    file.write_text(
        f'[load]\nsha256 = "{hashes["load"]}"\n\n'
        f'[limited]\nsha256 = "{hashes["limited"]}"\nrequests_per_second = 0.1\n'
    )
    return file


_KEYS = {"load": KEY, "limited": LIMITED_KEY}


@dataclass
class Load:
    """Sends requests to a gateway and records each of them."""

    url: str
    orchestrator: str
    """Address of the orchestrator, for calls with a deadline."""
    recorded: list[Recorded] = field(default_factory=list)

    def run(self) -> list[Recorded]:
        """Send each kind of request once or more, of each outcome; returns what was recorded."""
        return asyncio.run(self._run())

    def compare(self, number: int) -> list[Recorded]:
        """Send `number` requests of each operation, four at once."""
        return asyncio.run(self._compare(number))

    def stream_long(self, number: int) -> list[Recorded]:
        """Stream `number` long completions at once, to their ends."""
        return asyncio.run(self._stream_long(number))

    async def _stream_long(self, number: int) -> list[Recorded]:
        self.recorded = []
        async with self._client() as client:
            long = {"max_tokens": 1500, "ignore_eos": True}
            sends = (
                self.send(client, "text_completion", stream=True, **long) for _ in range(number)
            )
            await asyncio.gather(*sends)
        return self.recorded

    async def _run(self) -> list[Recorded]:
        self.recorded = []
        async with self._client() as client:
            for operation in ROUTES:
                for stream in (True, False):
                    await self.send(client, operation, stream=stream)
            await self.send(client, "chat", stream=False, model="no-such-model")
            await self._disconnect(client)
            await self._refusals(client)
            assert (await client.get("/v1/models")).status_code == 200
        await self._key_limit()
        await self._deadline()
        return self.recorded

    async def _compare(self, number: int) -> list[Recorded]:
        self.recorded = []
        limit = asyncio.Semaphore(4)
        async with self._client() as client:

            async def one(operation: str) -> None:
                async with limit:
                    await self.send(client, operation, stream=operation != "embeddings")

            await asyncio.gather(*(one(each) for _ in range(number) for each in ROUTES))
            for _ in range(3):
                await self.send(client, "chat", stream=False, model="no-such-model")
                await self._disconnect(client)
        return self.recorded

    def _client(self, key: str = KEY) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=120, trust_env=False, limits=limits
        )

    async def send(
        self,
        client: httpx.AsyncClient,
        operation: str,
        *,
        stream: bool,
        model: str = "demo",
        **more: object,
    ) -> int:
        """Send one request and record it; returns the status."""
        began = time.monotonic()
        first: float | None = None
        lines: list[str] = []
        body = _body(operation, stream=stream, model=model) | more
        async with client.stream("POST", ROUTES[operation], json=body) as response:
            async for line in response.aiter_lines():
                if stream and first is None and _has_text(line):
                    first = time.monotonic() - began
                lines.append(line)
        seconds = time.monotonic() - began
        usage = _usage(lines) if response.is_success else {}
        self.recorded.append(
            Recorded(
                operation,
                response.status_code,
                seconds,
                first,
                usage.get("prompt_tokens", 0),
                usage.get("completion_tokens", 0),
                response.headers["x-trace-id"],
            )
        )
        return response.status_code

    async def _disconnect(self, client: httpx.AsyncClient) -> None:
        """Streams a completion and closes the connection after the first event."""
        body = {**COMPLETION, "max_tokens": 1500, "stream": True, "ignore_eos": True}
        began = time.monotonic()
        async with client.stream("POST", ROUTES["text_completion"], json=body) as response:
            async for line in response.aiter_lines():
                if _has_text(line):
                    break
            first = time.monotonic() - began
        trace_id = response.headers["x-trace-id"]
        self.recorded.append(Recorded("text_completion", 499, first, first, trace_id=trace_id))

    async def _refusals(self, client: httpx.AsyncClient) -> None:
        """Sends more streams at once than the orchestrator admits, until one is refused."""
        async with asyncio.timeout(60):
            while 429 not in {each.status for each in self.recorded}:
                some = range(3 * MAX_CONCURRENT)
                await asyncio.gather(*(self.send(client, "chat", stream=True) for _ in some))

    async def _key_limit(self) -> None:
        """Uses up the limit of a key."""
        async with self._client(LIMITED_KEY) as client, asyncio.timeout(60):
            while await self.send(client, "chat", stream=False) != 429:
                pass

    async def _deadline(self) -> None:
        """A call of the orchestrator that exceeds its deadline: a fault of the server."""
        sampling = common_pb2.SamplingParams(max_tokens=1900, ignore_eos=True)
        request = orchestrator_pb2.GenerateRequest(text="A token is", sampling=sampling)
        async with open_channel(self.orchestrator) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            await stub.ListModels(orchestrator_pb2.ListModelsRequest(), wait_for_ready=True)
            call = stub.Generate(request, timeout=0.2)
            assert (await call.code()).name == "DEADLINE_EXCEEDED"


def _body(operation: str, *, stream: bool, model: str) -> dict[str, Any]:
    if operation == "embeddings":
        return {"model": model, "input": QUESTION}
    if operation == "search":
        return {**SEARCH, "model": model, "streaming": stream}
    body = CHAT if operation == "chat" else COMPLETION
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    return {**body, "model": model, "stream": stream, **usage}


def _events(lines: Iterable[str]) -> list[dict[str, Any]]:
    data = (line.removeprefix("data:").strip() for line in lines if line.startswith("data:"))
    return [json.loads(each) for each in data if each != "[DONE]"]


def _has_text(line: str) -> bool:
    for event in _events([line]):
        if event.get("token"):
            return True
        for choice in event.get("choices", []):
            if choice.get("text") or choice.get("delta", {}).get("content"):
                return True
    return False


def _usage(lines: list[str]) -> dict[str, int]:
    """The token counts of a response."""
    events = _events(lines) or [json.loads("".join(lines))]
    found: dict[str, int] = next(each["usage"] for each in reversed(events) if each.get("usage"))
    return found
