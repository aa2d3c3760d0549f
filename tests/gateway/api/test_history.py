"""The history of a conversation: reasoning, tool calls, and how tools reach the model."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mesh.v1 import common_pb2
from tests.gateway.fakes import FakeOrchestrator, Script

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "cut'}}


@pytest.mark.parametrize(
    ("fields", "content", "reasoning"),
    [
        ({"content": "4", "reasoning_content": "2 + 2"}, "4", "2 + 2"),
        ({"content": "4", "reasoning": "2 + 2"}, "4", "2 + 2"),
        ({"content": None, "reasoning_content": "2 + 2"}, "", "2 + 2"),
        ({"content": "4", "reasoning_content": None, "reasoning": None}, "4", ""),
        ({"tool_calls": [CALL], "reasoning_content": "Hm"}, "", "Hm"),
    ],
)
async def test_an_assistants_message_keeps_its_reasoning(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    fields: dict[str, Any],
    content: str,
    reasoning: str,
) -> None:
    """Under both of its names; a message of reasoning or calls needs no content."""
    message = {"role": "assistant", **fields}
    response = await client.post(CHAT, json={"model": "", "messages": [USER, message]})
    assert response.status_code == 200
    assert "x-ignored-fields" not in response.headers
    [request] = orchestrator.requests
    sent = request.chat.messages[1]  # type: ignore[attr-defined]
    assert (sent.content, sent.reasoning_content) == (content, reasoning)
    assert ("cut" in sent.tool_calls_json) is ("tool_calls" in fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"content": None, "refusal": "No."},
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": "No.", "refusal": None},
    ],
)
async def test_a_refusal_is_the_content(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, fields: dict[str, Any]
) -> None:
    """OpenAI's answers have one in either place, and clients send their answers back."""
    message = {"role": "assistant", **fields}
    response = await client.post(CHAT, json={"model": "", "messages": [USER, message]})
    assert response.status_code == 200
    assert "x-ignored-fields" not in response.headers
    [request] = orchestrator.requests
    assert request.chat.messages[1].content == "No."  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("tool_prompt", "header"),
    [
        (common_pb2.TOOL_PROMPT_TEMPLATE, "template"),
        (common_pb2.TOOL_PROMPT_GENERIC, "generic"),
        (common_pb2.TOOL_PROMPT_UNSPECIFIED, None),
    ],
)
async def test_a_header_says_how_tools_reach_the_model(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    stream: bool,
    tool_prompt: common_pb2.ToolPrompt.ValueType,
    header: str | None,
) -> None:
    """In the template's format or in a generic one; no header without tools."""
    orchestrator.script = Script(tool_prompt=tool_prompt)
    body = {"model": "", "messages": [USER], "tools": [TOOL], "stream": stream}
    response = await client.post(CHAT, json=body)
    assert response.status_code == 200
    assert response.headers.get("x-tool-prompt") == header


NAMED = {"name": "f", "arguments": '{"x": 1}'}
RESULT = {"role": "function", "name": "f", "content": "2"}


async def test_the_older_form_of_calls_becomes_the_newer_one(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """A result belongs to the latest call of its function."""
    older = {"role": "assistant", "content": None, "function_call": NAMED, "tool_calls": None}
    messages = [USER, older, RESULT, older, {**RESULT, "content": "3"}, {**RESULT, "name": "g"}]
    response = await client.post(CHAT, json={"model": "", "messages": messages})
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers
    [request] = orchestrator.requests
    sent = list(request.chat.messages)[1:]  # type: ignore[attr-defined]
    calls = [json.loads(each.tool_calls_json or "null") for each in sent]
    call = {"type": "function", "function": NAMED}
    assert calls[0] == [{"id": "call00001", **call}]
    assert calls[2] == [{"id": "call00003", **call}]
    assert [(each.role, each.content, each.tool_call_id) for each in sent[1::2]] == [
        ("tool", "2", "call00001"),
        ("tool", "3", "call00003"),
    ]
    assert (sent[4].role, sent[4].name, sent[4].tool_call_id) == ("tool", "g", "")


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({**RESULT, "name": None}, "messages[0].name is required"),
        (
            {"role": "assistant", "function_call": {"name": ""}},
            "messages[0].function_call.name must have at least 1 character, given 0",
        ),
        (
            {"role": "assistant", "function_call": NAMED, "tool_calls": [CALL]},
            "messages[0].function_call must not come with tool_calls",
        ),
    ],
)
async def test_a_broken_older_call_is_refused(
    client: httpx.AsyncClient, message: dict[str, Any], problem: str
) -> None:
    """The message names the field."""
    response = await client.post(CHAT, json={"model": "", "messages": [message]})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == problem
