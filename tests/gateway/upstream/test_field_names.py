"""Errors of upstream services name the field as the client's body does."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.schemas.chat import NAMES
from mesh.errors import ErrorKind, MeshError, invalid
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.gateway.sse import parse

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SEARCH = "/api/v1/search"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    COMPLETION: {"prompt": "Hi"},
    EMBEDDING: {"input": "Hi"},
    SEARCH: {"query": "Hi"},
}
SCHEMA = "response_format.json_schema.schema"
CASES: list[tuple[str, dict[str, Any], str, str | None]] = [
    (CHAT, {}, "constraint.json_schema", SCHEMA),
    (CHAT, {}, "constraint.json_object", "response_format"),
    (CHAT, {}, "constraint", "response_format"),
    (CHAT, {}, "tools_json", "tools"),
    (CHAT, {}, "tools_json[1].function", "tools[1].function"),
    (CHAT, {}, "template_kwargs_json", "chat_template_kwargs"),
    (CHAT, {}, "messages[2].tool_calls_json", "messages[2].tool_calls"),
    (CHAT, {}, "messages[2].tool_calls_json[0].id", "messages[2].tool_calls[0].id"),
    (CHAT, {}, "tool_choice.name", "tool_choice.function.name"),
    (CHAT, {}, "num_logprobs", "top_logprobs"),
    (CHAT, {}, "prompt", "messages"),
    (CHAT, {}, "max_tokens", "max_tokens"),
    (CHAT, {"max_tokens": 9}, "max_tokens", "max_tokens"),
    (CHAT, {"max_completion_tokens": 9}, "max_tokens", "max_completion_tokens"),
    (CHAT, {}, "logit_bias", "logit_bias"),
    (CHAT, {}, "num_resumed_tokens", None),
    (COMPLETION, {}, "num_logprobs", "logprobs"),
    (COMPLETION, {}, "num_prompt_logprobs", "logprobs"),
    (COMPLETION, {}, "prompt", "prompt"),
    (COMPLETION, {"prompt": [1, 2]}, "prompt", "prompt"),
    (COMPLETION, {"prompt": ["a"]}, "prompt", "prompt[0]"),
    (COMPLETION, {"prompt": [[1, 2]]}, "prompt", "prompt[0]"),
    (COMPLETION, {}, "messages[0]", None),
    (EMBEDDING, {}, "input[0]", "input"),
    (EMBEDDING, {"input": [5, 6]}, "input[0]", "input"),
    (EMBEDDING, {"input": ["a", "b"]}, "input[1]", "input[1]"),
    (EMBEDDING, {}, "input", "input"),
    (CHAT, {}, "tools[0].größe", "tools[0].größe"),
    (SEARCH, {}, "messages", "query"),
    (SEARCH, {}, "max_tokens", "max_tokens"),
]


@pytest.mark.parametrize(("path", "body", "field", "param"), CASES)
async def test_the_field_of_an_upstream_error(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    field: str,
    param: str | None,
) -> None:
    """`param` and the message have the path in the body; a field that is not in it is no param."""
    orchestrator.script = Script(refusal=invalid(field, f"{field} must be {field}, given 5"))
    response = await client.post(path, json={**BODIES[path], **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert error["message"] == f"{param or field} must be {field}, given 5"


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_an_error_in_mid_stream_names_the_clients_field(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, path: str
) -> None:
    """The last event of the stream has the path in the body."""
    orchestrator.script = Script(failure=invalid("num_logprobs", "num_logprobs must be absent"))
    response = await client.post(path, json={**BODIES[path], "stream": True})
    frames = [frame for frame in response.content.split(b"\n\n") if frame]
    name = "top_logprobs" if path == CHAT else "logprobs"
    error = parse(frames[-1]).data["error"]
    assert (error["param"], error["message"]) == (name, f"{name} must be absent")


async def test_the_prompt_of_a_list_is_named(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Prompts are separate calls upstream; the error has the number of the refused one."""
    orchestrator.script = Script(refusal=invalid("prompt", "prompt must be shorter"))
    body = {"prompt": ["a", "b", "c"], "n": 2}
    error = (await client.post(COMPLETION, json=body)).json()["error"]
    assert error["param"] in ("prompt[0]", "prompt[1]", "prompt[2]")
    assert error["message"] == f"{error['param']} must be shorter"


def test_an_error_without_a_field_or_with_a_known_one_is_unchanged() -> None:
    """The retry delay and the kind are kept by a renamed error."""
    for error in (
        MeshError(ErrorKind.UNAVAILABLE, "no engine is ready", retry_after=1.0),
        invalid("temperature", "temperature must be lower"),
    ):
        assert NAMES.public(error) is error
    renamed = NAMES.public(
        MeshError(ErrorKind.CONTEXT_TOO_LONG, "too long", param="prompt", retry_after=2.0)
    )
    assert (renamed.kind, renamed.message) == (ErrorKind.CONTEXT_TOO_LONG, "too long")
    assert (renamed.param, renamed.retry_after) == ("messages", 2.0)
