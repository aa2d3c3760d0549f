"""A long streamed completion, for tests that read it or disconnect from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

COMPLETIONS = "/v1/completions"


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, prompt: str, max_tokens: int = 1000
) -> AsyncIterator[httpx.Response]:
    """Streams a long completion; leaving the block closes the connection."""
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    async with client.stream("POST", COMPLETIONS, json=body) as response:
        assert response.status_code == 200
        yield response


async def read(
    response: httpx.Response, num_tokens: int, then: Callable[[], object] | None = None
) -> None:
    """Reads `num_tokens` events and returns; with `then`, calls it and reads to the end."""
    async for line in response.aiter_lines():
        num_tokens -= line.startswith("data:")
        if num_tokens == 0:
            if then is None:
                return
            then()
    assert line == "data: [DONE]" or not line
