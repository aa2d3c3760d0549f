"""The official OpenAI client against the four processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.e2e.support.stack import Stack

MESSAGES = [
    {
        "role": "user",
        "content": (
            "Question: capital of France\n\nSources:\n\n[1] France\n"
            "The capital of France is Paris. [1]\nFrance makes many kinds of cheese. [1]\n\n"
            "Question: capital of France"
        ),
    }
]


@pytest.fixture
async def openai_client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, configured with the address only."""
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        yield client


async def test_chat_deltas_concatenate_to_the_message(
    openai_client: openai.AsyncOpenAI,
) -> None:
    """The stream equals the message; include_usage adds usage."""
    create = openai_client.chat.completions.create
    whole = await create(model="demo", messages=MESSAGES, temperature=0)  # type: ignore[call-overload]
    stream = await create(  # type: ignore[call-overload]
        model="demo",
        messages=MESSAGES,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(deltas) == whole.choices[0].message.content
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    # Only the cached tokens may differ, because the second request reuses the first's prefix.
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.completion_tokens > 0


async def test_completions_and_models(openai_client: openai.AsyncOpenAI) -> None:
    """The client parses the responses of the other endpoints."""
    models = [model.id async for model in openai_client.models.list()]
    completion = await openai_client.completions.create(
        model="demo", prompt="The", max_tokens=4, temperature=0
    )
    assert models == ["demo"]
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 4


async def test_errors_raise_the_clients_exceptions(
    openai_client: openai.AsyncOpenAI,
) -> None:
    """An unknown model raises NotFoundError, an invalid value BadRequestError."""
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.chat.completions.create(
            model="no-such-model",
            messages=MESSAGES,  # type: ignore[arg-type]
        )
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        await openai_client.chat.completions.create(
            model="demo",
            messages=MESSAGES,  # type: ignore[arg-type]
            max_tokens=-1,
        )
