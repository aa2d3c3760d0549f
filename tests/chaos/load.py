"""Sends requests under load; greedy answers from before the faults are the expected texts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

PROMPTS = tuple(f"{word} is" for word in "Water Light Music Paris Bread Iron Time Rain".split())


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A prompt and its number of tokens to generate."""

    prompt: str
    max_tokens: int

    @property
    def body(self) -> dict[str, object]:
        """The body of a request to /v1/completions."""
        return {
            "model": "demo",
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }


@dataclass(kw_only=True)
class CompletionResult:
    """The response that a client received."""

    text: str = ""
    status: int = 0
    """HTTP status; 0 without a connection."""
    error: str = ""
    """Error message in the stream or of the transport; empty without an error."""
    finish_reason: str = ""
    num_finishes: int = 0
    done: bool = False
    """Whether `[DONE]` was the last event."""
    times: list[float] = field(default_factory=lambda: [time.monotonic()])
    """When the request was sent, when each piece of text arrived, and when the stream ended."""

    @property
    def ttft(self) -> float:
        """Seconds to the first text, or to the end without text."""
        return self.times[1] - self.times[0]

    @property
    def longest_pause(self) -> float:
        """Longest time in seconds in which nothing arrived."""
        return max(after - before for before, after in pairwise(self.times))

    @property
    def complete(self) -> bool:
        """Whether the stream ended normally, with exactly one finish reason."""
        return self.status == 200 and not self.error and self.done and self.num_finishes == 1


@dataclass
class Oracle:
    """The expected texts."""

    texts: dict[CompletionRequest, str] = field(default_factory=dict)

    async def learn(self, url: str, requests: Sequence[CompletionRequest]) -> None:
        """Sends each request twice before any fault; both texts must be equal."""
        async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
            for request in requests:
                first, second = [await stream_completion(client, request) for _ in range(2)]
                assert first.complete, first
                assert first.text == second.text
                assert first.text
                self.texts[request] = first.text

    def check(self, request: CompletionRequest, result: CompletionResult) -> None:
        """Checks that the text is a prefix of the expected one, and complete or with an error."""
        expected = self.texts[request]
        assert expected.startswith(result.text), f"{result.text!r} is no prefix of {expected!r}"
        if result.complete:
            assert result.text == expected
        assert result.num_finishes <= 1
        assert result.complete or result.error or result.status != 200, f"no valid end: {result}"


async def stream_completion(
    client: httpx.AsyncClient, request: CompletionRequest, *, started: asyncio.Event | None = None
) -> CompletionResult:
    """Streams one completion to its end; sets `started` at its first text. Returns errors."""
    result = CompletionResult()
    try:
        http_request = client.build_request(
            "POST", "/v1/completions", json={**request.body, "stream": True}
        )
        response = await client.send(http_request, stream=True)
        try:
            result.status = response.status_code
            if result.status != 200:
                result.error = (await response.aread()).decode()
                return result
            async for line in response.aiter_lines():
                _parse_line(result, line)
                if result.text and started is not None:
                    started.set()
        finally:
            await response.aclose()
    except httpx.TransportError as error:
        result.error = f"{type(error).__name__}: {error}"
    result.times.append(time.monotonic())
    return result


def _parse_line(result: CompletionResult, line: str) -> None:
    if not line.startswith("data: "):
        return
    data = line.removeprefix("data: ")
    assert not result.done, f"{line!r} after [DONE]"
    if data == "[DONE]":
        result.done = True
        return
    event = json.loads(data)
    if "error" in event:
        result.error = event["error"]["message"]
        return
    for choice in event["choices"]:
        result.text += choice["text"]
        if choice["text"]:
            result.times.append(time.monotonic())
        if choice["finish_reason"]:
            result.finish_reason = choice["finish_reason"]
            result.num_finishes += 1
