"""Structured output, tools, echo and embeddings with the official client and a random model.

A random model generates nonsense, so output that matches a schema proves that it was constrained.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.e2e.support.stack import Stack

pytestmark = pytest.mark.timeout(180)

MESSAGES: Any = [{"role": "user", "content": "What is the weather in Rome? 🌦"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo é"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "warm": {"type": "boolean"},
    },
    "required": ["city", "days", "warm"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("weather", "forecast")
]


@pytest.fixture
async def official(instruct_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, configured with the address only."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{instruct_stack.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


def check_matches_schema(text: str) -> None:
    """Fails unless `text` is JSON that matches the schema."""
    value = json.loads(text)
    assert set(value) == {"city", "days", "warm"}
    assert value["city"] in ("Rome", "Oslo é")
    assert value["days"] in range(1, 10)
    assert isinstance(value["warm"], bool)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_matches_its_json_schema(
    official: openai.AsyncOpenAI, temperature: float
) -> None:
    """Streamed and not, greedy and sampled."""
    format: Any = {
        "type": "json_schema",
        "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
    }
    ask: Any = {"model": "instruct", "messages": MESSAGES, "response_format": format, "seed": 1}
    create = official.chat.completions.create
    whole = await create(**ask, temperature=temperature, max_tokens=200)
    check_matches_schema(whole.choices[0].message.content)
    assert whole.choices[0].finish_reason == "stop"
    stream = await create(**ask, temperature=temperature, max_tokens=200, stream=True)
    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    check_matches_schema("".join(texts))
    assert len(texts) > 3


async def test_json_object_mode(official: openai.AsyncOpenAI) -> None:
    """The text is a JSON object, or the beginning of one if max_tokens ends it."""
    answer = await official.chat.completions.create(
        model="instruct",
        messages=MESSAGES,
        response_format={"type": "json_object"},
        max_tokens=60,
        temperature=0,
    )
    text = answer.choices[0].message.content
    assert text is not None
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


CHOICES: list[tuple[Any, set[str]]] = [
    ("required", {"weather", "forecast"}),
    ({"type": "function", "function": {"name": "forecast"}}, {"forecast"}),
]


@pytest.mark.parametrize(("choice", "names"), CHOICES)
async def test_a_required_tool_is_called(
    official: openai.AsyncOpenAI, choice: Any, names: set[str]
) -> None:
    """Without streaming; the tool's result can be sent back."""
    ask: Any = {"model": "instruct", "tools": TOOLS, "tool_choice": choice, "max_tokens": 300}
    create = official.chat.completions.create
    answer = await create(**ask, messages=MESSAGES, parallel_tool_calls=False)
    [choice_made] = answer.choices
    [call] = choice_made.message.tool_calls
    assert choice_made.finish_reason == "tool_calls"
    assert choice_made.message.content is None
    assert call.function.name in names
    check_matches_schema(call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    message = choice_made.message.model_dump(exclude_none=True)
    again = await create(**ask, messages=[*MESSAGES, message, result], parallel_tool_calls=False)
    assert again.choices[0].message.tool_calls


async def test_tools_beside_a_response_format(official: openai.AsyncOpenAI) -> None:
    """The model decides: it calls tools, or answers in the format."""
    format: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    answer = await official.chat.completions.create(
        model="instruct",
        messages=MESSAGES,
        tools=TOOLS,
        parallel_tool_calls=False,
        response_format=format,
        max_tokens=200,
        n=8,
        seed=1,
    )
    for choice in answer.choices:
        if not choice.message.tool_calls:
            check_matches_schema(choice.message.content or "")
            continue
        [call] = choice.message.tool_calls
        assert choice.message.content is None
        assert call.function.name in ("weather", "forecast")  # type: ignore[union-attr]
        if choice.finish_reason == "tool_calls":
            arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
            assert isinstance(arguments, dict)
    assert {bool(choice.message.tool_calls) for choice in answer.choices} == {True, False}


async def test_tool_calls_stream(official: openai.AsyncOpenAI) -> None:
    """Id and name come first, then the arguments in deltas; calls have consecutive indexes."""
    ask: Any = {"model": "instruct", "tools": TOOLS, "tool_choice": "required", "seed": 3}
    stream = await official.chat.completions.create(
        **ask, messages=MESSAGES, stream=True, max_tokens=400
    )
    calls: dict[int, list[str]] = {}
    num_deltas = 0
    async for chunk in stream:
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.index not in calls:
                assert delta.id
                assert delta.function.name in ("weather", "forecast")
            calls.setdefault(delta.index, []).append(delta.function.arguments)
            num_deltas += 1
        assert not chunk.choices[0].delta.content
    assert list(calls) == list(range(len(calls)))
    check_matches_schema("".join(calls[0]))
    assert num_deltas > 3


async def test_echo_with_several_prompts(official: openai.AsyncOpenAI) -> None:
    """Each choice has its own index and begins with its prompt."""
    answer = await official.completions.create(
        model="instruct", prompt=["Héllo 👋", "ab"], echo=True, max_tokens=4, n=2, temperature=0
    )
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert all(text.startswith("Héllo 👋") for text in texts[:2])
    assert all(text.startswith("ab") for text in texts[2:])
    # Greedy decoding: both choices of one prompt are equal.
    assert texts[0] == texts[1]


async def test_prompt_logprobs(official: openai.AsyncOpenAI) -> None:
    """echo with logprobs and max_tokens 0, as evaluation tools request it."""
    answer = await official.completions.create(
        model="instruct", prompt="A weir is é 👋", echo=True, max_tokens=0, logprobs=2
    )
    [choice] = answer.choices
    logprobs: Any = choice.logprobs
    assert choice.text == "A weir is é 👋"
    assert logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == answer.usage.prompt_tokens  # type: ignore[union-attr]
    assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])
    assert any(token.startswith("bytes:\\x") for token in logprobs.tokens)
    assert answer.usage.completion_tokens == 0  # type: ignore[union-attr]


async def test_embeddings(official: openai.AsyncOpenAI) -> None:
    """Vectors have norm 1, and do not depend on the other texts in the request."""
    create = official.embeddings.create
    many = await create(model="instruct", input=["Rome", "A weir is a dam", "Rome 🏛"])
    alone = await create(model="instruct", input="Rome")
    first = many.data[0].embedding
    assert len(first) == 64
    for each in many.data:
        assert math.isclose(sum(v * v for v in each.embedding), 1, rel_tol=1e-5)
    assert alone.data[0].embedding == pytest.approx(first, abs=1e-5)
    assert many.data[1].embedding != pytest.approx(first, abs=1e-2)
    assert many.usage.prompt_tokens > alone.usage.prompt_tokens > 0
    short = await create(model="instruct", input="Rome", dimensions=8)
    assert len(short.data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError, match="dimensions must be at most 64, given 65"):
        await create(model="instruct", input="Rome", dimensions=65)
