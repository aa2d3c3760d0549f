"""The official client of the Responses API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from gateway.http.server import GatewayServer


@pytest.fixture
async def official(gateway: GatewayServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client with its defaults, except for the address and no retries."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{gateway.port}/v1",
        api_key="none",
        max_retries=0,
        http_client=http,
    ) as official:
        yield official
