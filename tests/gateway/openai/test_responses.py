"""Tool calls, reasoning, response formats and ignored fields in OpenAI's API."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from mesh.v1 import common_pb2, orchestrator_pb2
from tests.gateway.api.test_openai import official as official  # a fixture
from tests.gateway.fakes import LENGTH, FakeOrchestrator, Script
from tests.gateway.openai.test_choices import CHAT, MESSAGES, streamed

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def delta_of(**fields: Any) -> orchestrator_pb2.Delta:
    """A delta of two tokens."""
    return orchestrator_pb2.Delta(num_tokens=2, **fields)


def call(index: int, id: str = "", name: str = "", arguments: str = "") -> Any:
    """A delta of a tool call."""
    return delta_of(
        tool_calls=[
            orchestrator_pb2.ToolCallDelta(index=index, id=id, name=name, arguments=arguments)
        ]
    )


CALLS = [
    call(0, "call_a", "f", ""),
    call(0, arguments='{"a"'),
    call(0, arguments=": 1}"),
    call(1, "call_b", "g", "{}"),
]


async def test_tool_calls_without_streaming(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """The message has no content, and the finish reason is tool_calls."""
    orchestrator.script = Script(deltas=CALLS)
    answer = await official.chat.completions.create(
        model="fake",
        messages=MESSAGES,
        tools=[TOOL],  # type: ignore[arg-type]
    )
    [choice] = answer.choices
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"
    made = [
        (c.id, c.type, c.function.name, c.function.arguments) for c in choice.message.tool_calls
    ]  # type: ignore[union-attr]
    assert made == [
        ("call_a", "function", "f", '{"a": 1}'),
        ("call_b", "function", "g", "{}"),
    ]


async def test_tool_calls_with_streaming(
    official: openai.AsyncOpenAI, orchestrator: FakeOrchestrator
) -> None:
    """Id, type and name are sent once, then the arguments as they are generated."""
    orchestrator.script = Script(deltas=["Well.", *CALLS])
    stream = await official.chat.completions.create(
        model="fake",
        messages=MESSAGES,
        tools=[TOOL],
        stream=True,  # type: ignore[arg-type]
    )
    chunks = [chunk async for chunk in stream]
    deltas = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
    assert [(d.index, d.id, d.type) for d in deltas] == [
        (0, "call_a", "function"),
        (0, None, None),
        (0, None, None),
        (1, "call_b", "function"),
    ]
    assert [d.function.arguments for d in deltas if d.function] == ["", '{"a"', ": 1}", "{}"]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert chunks[1].choices[0].delta.content == "Well."


async def test_a_truncated_tool_call_has_finish_reason_length(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The finish reason is not tool_calls, because the arguments are incomplete."""
    orchestrator.script = Script(deltas=CALLS[:2], reason=LENGTH)
    answer = (await client.post(CHAT, json={"messages": MESSAGES, "tools": [TOOL]})).json()
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_reasoning_is_a_separate_field(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Reasoning is in reasoning_content, with and without streaming; its tokens are counted."""
    orchestrator.script = Script(deltas=[delta_of(reasoning="Hm"), delta_of(reasoning="."), "Two"])
    answer = (await client.post(CHAT, json={"messages": MESSAGES})).json()
    options = {"stream_options": {"include_usage": True}}
    *chunks, last = await streamed(client, CHAT, {"messages": MESSAGES, **options})
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Two")
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"reasoning_content": "."},
        {"content": "Two"},
        {},
    ]
    for usage in (answer["usage"], last["usage"]):
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}


CHOICES: list[tuple[Any, dict[str, Any]]] = [
    ("auto", {}),
    ("required", {"required": True}),
    ({"type": "function", "function": {"name": "f"}}, {"name": "f"}),
]


@pytest.mark.parametrize(("choice", "fields"), CHOICES)
@pytest.mark.parametrize("parallel", [True, False])
async def test_tool_choice_reaches_the_orchestrator(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    choice: Any,
    fields: dict[str, Any],
    parallel: bool,
) -> None:
    """tool_choice and parallel_tool_calls become a ToolChoice message."""
    body = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": parallel}
    response = await client.post(CHAT, json={"messages": MESSAGES, **body})
    assert response.status_code == 200, response.text
    [request] = orchestrator.requests
    assert request.tool_choice == orchestrator_pb2.ToolChoice(  # type: ignore[attr-defined]
        **fields, single=not parallel
    )


SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}
FORMATS: list[tuple[Any, common_pb2.OutputConstraint | None]] = [
    ({"type": "text"}, None),
    ({"type": "json_object"}, common_pb2.OutputConstraint(json_object=True)),
    (
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        common_pb2.OutputConstraint(json_schema=json.dumps(SCHEMA, ensure_ascii=False)),
    ),
]


@pytest.mark.parametrize(("format", "constraint"), FORMATS)
async def test_response_format_reaches_the_orchestrator(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    format: Any,
    constraint: common_pb2.OutputConstraint | None,
) -> None:
    """A response format becomes an OutputConstraint; a JSON schema is passed unchanged."""
    await client.post(CHAT, json={"messages": MESSAGES, "response_format": format})
    sampling = orchestrator.requests[0].sampling  # type: ignore[attr-defined]
    given = sampling.constraint if sampling.HasField("constraint") else None
    assert given == constraint


async def test_response_format_excludes_a_required_tool_call(client: httpx.AsyncClient) -> None:
    """The output cannot satisfy both constraints."""
    body = {"tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}}
    response = await client.post(CHAT, json={"messages": MESSAGES, **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format.type"


IGNORED: list[tuple[dict[str, Any], str | None]] = [
    ({"user": "me"}, None),
    ({"store": True, "metadata": {}}, "store, metadata"),
    ({"stream_options": {"include_usage": False, "x": 1}}, "stream_options.x"),
    ({"messages": [*MESSAGES, {"role": "user", "content": "a", "é": 1}]}, "messages[1].\\xe9"),
    ({"a\r\nb,c": 1}, "a??b?c"),
    ({f"f{n}": 1 for n in range(30)}, ", ".join([*(f"f{n}" for n in range(20)), "..."])),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"y": 1}, "z": 2},
            }
        },
        "response_format.json_schema.z",
    ),
]


@pytest.mark.parametrize(("fields", "header"), IGNORED)
@pytest.mark.parametrize("stream", [False, True])
async def test_ignored_fields_are_listed_in_a_header(
    client: httpx.AsyncClient, fields: dict[str, Any], header: str | None, stream: bool
) -> None:
    """x-ignored-fields lists their paths; names are escaped and the list is truncated."""
    response = await client.post(CHAT, json={"messages": MESSAGES, "stream": stream, **fields})
    assert response.status_code == 200, response.text
    assert response.headers.get("x-ignored-fields") == header
