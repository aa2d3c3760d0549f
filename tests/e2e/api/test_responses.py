"""The Responses API with the official client against the four processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.e2e.support.stack import Stack
from tests.gateway.responses.events import events_of, joined, plain

pytestmark = pytest.mark.timeout(180)

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo é"]}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}


class Weather(BaseModel):
    """What the model must answer."""

    warm: bool
    days: Literal[1, 2, 3]


@pytest.fixture
async def official(instruct_stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, configured with the address only."""
    http = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"{instruct_stack.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


async def test_a_stream_equals_the_response(official: openai.AsyncOpenAI) -> None:
    """Created and streamed, greedy; every event is of the SDK's types."""
    ask: Any = {"model": "instruct", "input": "Hi", "temperature": 0, "max_output_tokens": 24}
    whole = await official.responses.create(**ask)
    base_url = str(official.base_url).removesuffix("/v1/")
    async with httpx.AsyncClient(base_url=base_url, trust_env=False) as http:
        events = await events_of(http, **ask)
        raw = (await http.post("/v1/responses", json=ask)).json()
    assert joined(events, "response.output_text.delta") == whole.output_text != ""
    # Only the cached tokens may differ.
    streamed = {**plain(events[-1]["response"]), "usage": None}
    assert streamed == {**plain(raw), "usage": None}
    assert whole.status == "incomplete"


async def test_structured_output_is_parsed(official: openai.AsyncOpenAI) -> None:
    """A random model keeps to the schema."""
    parsed = await official.responses.parse(
        model="instruct", input="Warm?", text_format=Weather, max_output_tokens=300, temperature=0
    )
    assert isinstance(parsed.output_parsed, Weather)


async def test_a_tool_is_called_and_answered_by_id(official: openai.AsyncOpenAI) -> None:
    """The arguments stream as deltas; the client continues with the result alone."""
    ask: Any = {"model": "instruct", "tools": [TOOL], "max_output_tokens": 400}
    ask |= {"parallel_tool_calls": False, "temperature": 0}
    async with official.responses.stream(input="?", tool_choice="required", **ask) as stream:
        deltas = [e.delta async for e in stream if e.type.endswith("call_arguments.delta")]
        first = await stream.get_final_response()
    calls: Any = [item for item in first.output if item.type == "function_call"]
    assert calls
    assert set(json.loads(calls[0].arguments)) == {"city", "days"}
    assert len(deltas) > 3
    outputs: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        for call in calls
    ]
    second = await official.responses.create(
        input=outputs, previous_response_id=first.id, tool_choice="none", **ask
    )
    assert second.output_text


@pytest.mark.parametrize("kind", ["web_search", "file_search"])
async def test_a_search_is_cited(stack: Stack, kind: str) -> None:
    """The demo model answers from the corpus; every annotation is a citation in the text."""
    body: Any = {
        "input": "what is backpressure",
        "tools": [{"type": kind}],
        "tool_choice": {"type": kind},
        "temperature": 0,
        "max_output_tokens": 256,
    }
    async with httpx.AsyncClient(base_url=stack.url, timeout=60, trust_env=False) as client:
        events = await events_of(client, **body)
        search = await client.get("/api/v1/search", params={"query": "what is backpressure"})
    call, message = events[-1]["response"]["output"]
    assert (call["type"], call["status"]) == (f"{kind}_call", "completed")
    [part] = message["content"]
    # Its sources are those of a search. The answer is not: a conversation has no form to keep.
    found = search.json()
    assert part["annotations"]
    urls = {result["url"] for result in found["search_results"]}
    for annotation in part["annotations"]:
        cited = part["text"][annotation["start_index"] : annotation["end_index"]]
        assert cited.startswith("[")
        assert annotation["url"] in urls
