"""The official Anthropic client against the four processes, with the demo and a random model.

A random model generates nonsense, so output that matches a schema proves that it was constrained.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import anthropic
import httpx2
import pytest
from pydantic import BaseModel

from tests.e2e.support.stack import Stack

pytestmark = pytest.mark.timeout(180)

QUESTION: Any = [
    {
        "role": "user",
        "content": (
            "Question: capital of France\n\nSources:\n\n[1] France\n"
            "The capital of France is Paris. [1]\nFrance makes many kinds of cheese. [1]\n\n"
            "Question: capital of France"
        ),
    }
]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Rome? 🌦"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo é"]}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [{"name": name, "input_schema": SCHEMA} for name in ("weather", "forecast")]


def client_of(stack: Stack) -> anthropic.AsyncAnthropic:
    """The official client, configured with the address only."""
    http = httpx2.AsyncClient(trust_env=False)
    return anthropic.AsyncAnthropic(
        base_url=stack.url, api_key="none", max_retries=0, http_client=http
    )


@pytest.fixture
async def demo(stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(stack) as client:
        yield client


@pytest.fixture
async def instruct(instruct_stack: Stack) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with client_of(instruct_stack) as client:
        yield client


async def test_the_stream_is_the_message(demo: anthropic.AsyncAnthropic) -> None:
    """Text, reasons and usage agree; the tokens are those that count_tokens reports."""
    counted = await demo.messages.count_tokens(model="demo", messages=QUESTION)
    whole = await demo.messages.create(
        model="demo", messages=QUESTION, max_tokens=100, extra_body={"temperature": 0}
    )
    async with demo.messages.stream(
        model="demo", messages=QUESTION, max_tokens=100, extra_body={"temperature": 0}
    ) as stream:
        texts = [text async for text in stream.text_stream]
        streamed = await stream.get_final_message()
    [block] = whole.content
    assert block.type == "text"
    assert "Paris" in block.text
    assert "".join(texts) == block.text
    assert len(texts) > 1
    assert streamed.content[0].type == "text"
    assert streamed.content[0].text == block.text
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    assert whole.usage.output_tokens == streamed.usage.output_tokens > 0
    for usage in (whole.usage, streamed.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted.input_tokens
    # The second request has the same prompt, so whole blocks of it are cached.
    assert (streamed.usage.cache_read_input_tokens or 0) >= 16


async def test_a_stop_sequence_is_named(demo: anthropic.AsyncAnthropic) -> None:
    """The text ends before it."""
    answer = await demo.messages.create(
        model="demo",
        messages=QUESTION,
        max_tokens=100,
        stop_sequences=["Paris", "never"],
        extra_body={"temperature": 0},
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Paris")
    assert not answer.content or "Paris" not in answer.content[0].text  # type: ignore[union-attr]


async def test_errors_raise_the_clients_exceptions(demo: anthropic.AsyncAnthropic) -> None:
    """An unknown model raises NotFoundError, an invalid value BadRequestError."""
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await demo.messages.create(model="no-such-model", messages=QUESTION, max_tokens=9)
    with pytest.raises(anthropic.BadRequestError) as invalid:
        await demo.messages.count_tokens(model="demo", messages=[])
    assert unknown.value.type == "not_found_error"
    assert invalid.value.type == "invalid_request_error"
    assert invalid.value.request_id


async def test_a_tool_loop_of_two_steps(instruct: anthropic.AsyncAnthropic) -> None:
    """A forced call matches its schema; its result becomes part of the next prompt."""
    ask: Any = {"model": "instruct", "max_tokens": 200, "tools": TOOLS}
    forced: Any = {"type": "any", "disable_parallel_tool_use": True}
    async with instruct.messages.stream(**ask, messages=WEATHER, tool_choice=forced) as stream:
        kinds = [event.type async for event in stream]
        first = await stream.get_final_message()
    assert "input_json" in kinds
    [call] = first.content
    assert call.type == "tool_use"
    assert call.name in ("weather", "forecast")
    assert call.input["city"] in ("Rome", "Oslo é")
    assert call.input["days"] in (1, 2)
    assert first.stop_reason == "tool_use"
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    history = [*WEATHER, first.to_param(), {"role": "user", "content": [result]}]
    second = await instruct.messages.create(
        model="instruct",
        messages=history,
        tools=TOOLS,
        max_tokens=12,
        tool_choice={"type": "auto"},
        extra_body={"ignore_eos": True},
    )
    assert second.usage.output_tokens == 12
    assert second.stop_reason in ("max_tokens", "tool_use")
    first_prompt = first.usage.input_tokens + (first.usage.cache_read_input_tokens or 0)
    second_prompt = second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0)
    assert second_prompt > first_prompt
    assert (second.usage.cache_read_input_tokens or 0) > 0


async def test_structured_output(instruct: anthropic.AsyncAnthropic) -> None:
    """`parse` returns a validated object."""

    class Forecast(BaseModel):
        city: Literal["Rome", "Oslo é"]
        warm: bool

    parsed = await instruct.messages.parse(
        model="instruct", messages=WEATHER, max_tokens=200, output_format=Forecast
    )
    assert isinstance(parsed.parsed_output, Forecast)


async def test_max_tokens_beyond_the_context_is_lowered(
    instruct: anthropic.AsyncAnthropic,
) -> None:
    """The answer fills the context, and the reason says so."""
    messages: Any = [{"role": "user", "content": "Rome 1 " * 250}]
    counted = await instruct.messages.count_tokens(model="instruct", messages=messages)
    answer = await instruct.messages.create(
        model="instruct",
        messages=messages,
        max_tokens=16_000,
        extra_body={"ignore_eos": True},
    )
    assert answer.stop_reason == "model_context_window_exceeded"
    assert counted.input_tokens + answer.usage.output_tokens == 2048
