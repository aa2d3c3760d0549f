"""The request of a response: items, tools, options, and errors that name the client's fields."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mesh.errors import ErrorKind, MeshError
from tests.gateway.direct import direct_client
from tests.gateway.fakes import FakeOrchestrator, Script

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "name": "find", "description": "Finds.", "parameters": {}}


async def sent(client: httpx.AsyncClient, orchestrator: FakeOrchestrator, **body: Any) -> Any:
    """The request that the orchestrator receives."""
    response = await client.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    return orchestrator.requests[-1]


async def test_items_become_messages(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Reasoning, text and calls of one turn are one message, as chat templates expect."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "D"}]},
        USER,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
            {"type": "reasoning_text", "text": "Hm"}]},
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Let me", "annotations": []}]},
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [
            {"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "One."},
        {"role": "assistant", "content": "Two."},
    ]  # fmt: skip
    request = await sent(client, orchestrator, input=items, instructions="Be short.")
    messages = request.chat.messages
    assert [(each.role, each.content) for each in messages] == [
        ("system", "Be short."),
        ("developer", "D"),
        ("user", "Hi"),
        ("assistant", "Let me"),
        ("tool", "1"),
        ("tool", "2"),
        ("assistant", "One."),
        ("assistant", "Two."),
    ]
    assert messages[3].reasoning_content == "Hm"
    assert [call["id"] for call in json.loads(messages[3].tool_calls_json)] == ["a", "b"]
    assert [each.tool_call_id for each in messages[4:6]] == ["a", "b"]


async def test_a_text_is_a_message_of_the_user(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The shortest request."""
    request = await sent(client, orchestrator, input="Hi")
    [message] = request.chat.messages
    assert (message.role, message.content) == ("user", "Hi")
    assert not request.HasField("tool_choice")


async def test_options_reach_the_orchestrator(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Sampling, tools in chat form, the choice, reasoning and the text's format."""
    request = await sent(
        client,
        orchestrator,
        model="m",
        input=[USER],
        tools=[TOOL],
        tool_choice={"type": "function", "name": "find"},
        parallel_tool_calls=False,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_output_tokens=5,
        reasoning={"effort": "none"},
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.5, 7, 5)
    assert sampling.top_p == pytest.approx(0.9)
    [tool] = json.loads(request.chat.tools_json)
    assert tool["function"] == {"name": "find", "description": "Finds.", "parameters": {}}
    assert (request.tool_choice.name, request.tool_choice.single) == ("find", True)
    kwargs = json.loads(request.chat.template_kwargs_json)
    assert kwargs == {"reasoning_effort": "none", "enable_thinking": False}


async def test_allowed_tools_are_the_only_ones(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """The others are not shown to the model."""
    other = {**TOOL, "name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "other"}]}  # fmt: skip
    request = await sent(client, orchestrator, input="Hi", tools=[TOOL, other], tool_choice=choice)
    assert [t["function"]["name"] for t in json.loads(request.chat.tools_json)] == ["other"]
    assert request.tool_choice.required


async def test_unknown_fields_tools_and_items_are_ignored_and_named(
    client: httpx.AsyncClient,
) -> None:
    """Also inside of items and tools."""
    body: Any = {
        "input": [{**USER, "x": 1}, {"type": "mcp_call", "id": "m"}],
        "tools": [{"type": "image_generation"}, {**TOOL, "y": 1}, {"type": "namespace"}],
        "text": {"format": {"type": "text", "z": 1}},
        "unknown": 1,
    }
    response = await client.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert set(response.headers["x-ignored-fields"].split(", ")) == {
        "input[0].x",
        "input[1] (mcp_call)",
        "tools[0] (image_generation)",
        "tools[1].y",
        "tools[2] (namespace)",
        "text.format.z",
        "unknown",
    }
    assert [tool["name"] for tool in response.json()["tools"]] == ["find"]


ERRORS: list[tuple[dict[str, Any], str]] = [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [USER, {"role": "user", "content": [{"type": "input_image"}]}]},
         "input[1].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
         "input[0].call_id"),
        ({"input": "x", "tools": [TOOL, {"type": "function"}]}, "tools[1].name"),
        ({"input": "x", "tools": [{**TOOL, "parameters": {"type": "array"}}]},
         "tools[0].parameters.type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"input": "x", "tools": [{"type": "web_search"}, {**TOOL, "name": "web_search"}]},
         "tools"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}},
         "text.format.schema"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "top_logprobs": 99}, "top_logprobs"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata.a"),
        ({"input": "x", "background": True, "store": False}, "store"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "truncation": "always"}, "truncation"),
]  # fmt: skip


async def test_an_error_names_the_field() -> None:
    """As the client wrote it, and at the beginning of the message."""
    async with direct_client() as client:
        for body, param in ERRORS:
            response = await client.post("/v1/responses", json=body)
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            assert error["param"] == param
            assert error["message"].startswith(param)


UPSTREAM_ERRORS = [
    ("messages[1].content", "input[2].content"),
    ("messages[0].content", "instructions.content"),
    ("tools[0].function.parameters", "tools[1].parameters"),
    ("num_logprobs", "top_logprobs"),
    ("max_tokens", "max_output_tokens"),
    ("constraint.json_schema", "text.format.schema"),
    ("prompt", "input"),
]


async def test_an_upstream_error_names_the_clients_field(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Messages and tools are counted as in the request."""
    items = [{"type": "web_search_call", "id": "w"}, {"type": "other"}, USER]
    body = {"input": items, "instructions": "I", "tools": [{"type": "mcp"}, TOOL]}
    for field, param in UPSTREAM_ERRORS:
        refusal = MeshError(ErrorKind.INVALID_REQUEST, f"{field} is not valid", param=field)
        orchestrator.script = Script(refusal=refusal)
        error = (await client.post("/v1/responses", json=body)).json()["error"]
        assert (error["param"], error["message"]) == (param, f"{param} is not valid")


async def test_truncation_leaves_out_the_oldest_messages(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Not the instructions, and no result without its call."""
    too_long = Script(refusal=MeshError(ErrorKind.CONTEXT_TOO_LONG, "too long"))
    orchestrator.scripts = [too_long, too_long, Script()]
    items: list[Any] = [
        USER,
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"role": "user", "content": "Last"},
    ]
    body = {"input": items, "instructions": "I", "truncation": "auto"}
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    roles = [[m.role for m in each.chat.messages] for each in orchestrator.requests]  # type: ignore[attr-defined]
    assert roles == [
        ["system", "user", "assistant", "tool", "user"],
        ["system", "assistant", "tool", "user"],
        ["system", "user"],
    ]
    orchestrator.script = too_long
    response = await client.post("/v1/responses", json=body)
    assert response.json()["error"]["code"] == "context_length_exceeded"
    orchestrator.requests.clear()
    response = await client.post("/v1/responses", json={**body, "truncation": "disabled"})
    assert (response.status_code, len(orchestrator.requests)) == (400, 1)
