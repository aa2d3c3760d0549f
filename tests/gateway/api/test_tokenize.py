"""`/tokenize` and `/detokenize`: what reaches the orchestrator, and what the client reads."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest

from gateway.api import tokenize
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize("encoded_at_once", [2, tokenize.ENCODED_AT_ONCE])
async def test_a_text_round_trips(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, encoded_at_once: int
) -> None:
    """The answers have vLLM's fields."""
    monkeypatch.setattr(tokenize, "ENCODED_AT_ONCE", encoded_at_once)
    asked = {"model": "fake", "prompt": "né😀", "return_token_strs": True}
    answer = (await client.post("/tokenize", json=asked)).json()
    ids = [ord(each) for each in "né😀"]
    strs = ["n", "é", "😀"]
    assert answer == {"count": 3, "max_model_len": 2048, "tokens": ids, "token_strs": strs}
    plain = (await client.post("/tokenize", json={"prompt": ""})).json()
    assert plain == {"count": 0, "max_model_len": 2048, "tokens": [], "token_strs": None}
    back = await client.post("/detokenize", json={"tokens": ids})
    assert back.json() == {"prompt": "né😀"}
    assert (await client.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}


ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "a"}, {"text": "a", "add_special_tokens": True}),
    ({"prompt": "a", "add_special_tokens": False, "model": "m"}, {"text": "a", "model": "m"}),
    ({"messages": [USER]}, {"chat": {}}),
    ({"messages": [USER], "add_generation_prompt": True}, {"chat": {}}),
    (
        {"messages": [USER], "add_generation_prompt": False, "add_special_tokens": True},
        {"chat": {"omit_generation_prompt": True}, "add_special_tokens": True},
    ),
    (
        {"messages": [USER], "continue_final_message": True, "return_token_strs": True},
        {"chat": {"continue_final_message": True}, "return_token_strs": True},
    ),
    (
        {"messages": [USER], "tools": [TOOL], "chat_template_kwargs": {"x": 1}},
        {
            "chat": {
                "tools_json": '[{"type": "function", "function": {"name": "f"}}]',
                "template_kwargs_json": '{"x": 1}',
            }
        },
    ),
]


@pytest.mark.parametrize(("body", "expected"), ASKED)
async def test_every_field_reaches_the_orchestrator(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    body: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """Special tokens are added to texts by default, and to conversations on request."""
    assert (await client.post("/tokenize", json=body)).status_code == 200
    made = orchestrator_pb2.TokenizeRequest(**expected)
    if "messages" in body:
        made.chat.messages.append(common_pb2.ChatMessage(**USER))
    assert orchestrator.requests == [made]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/tokenize", {}, "prompt is required, or messages"),
    ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt must not come with messages"),
    ("/tokenize", {"prompt": 5}, "prompt must be a string, given 5"),
    ("/tokenize", {"messages": []}, "messages must have at least 1 item, given 0"),
    (
        "/tokenize",
        {"messages": [USER], "continue_final_message": True, "add_generation_prompt": True},
        "add_generation_prompt must be false with continue_final_message true, given true",
    ),
    ("/detokenize", {}, "tokens is required"),
    ("/detokenize", {"tokens": "a"}, "tokens must be an array of token ids, given a string"),
    (
        "/detokenize",
        {"tokens": [1, -1]},
        "tokens[1] must be a token id from 0 to 4294967295, given -1",
    ),
    (
        "/detokenize",
        {"tokens": [True]},
        "tokens[0] must be a token id from 0 to 4294967295, given true",
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD)
async def test_bad_input(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], message: str
) -> None:
    """400: the message and `param` name the field."""
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["message"]) == (400, message)
    assert error["param"] == message.split(" ")[0]


@pytest.mark.parametrize(
    ("path", "body", "param", "public"),
    [
        ("/detokenize", {"tokens": [1, 9]}, "token_ids[1]", "tokens[1]"),
        ("/tokenize", {"messages": [USER]}, "template_kwargs_json", "chat_template_kwargs"),
        ("/tokenize", {"messages": [USER]}, "tools_json[0]", "tools[0]"),
    ],
)
async def test_an_upstream_error_names_the_bodys_field(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    param: str,
    public: str,
) -> None:
    """As with an id that is not in the vocabulary."""
    orchestrator.script = Script(refusal=invalid(param, f"{param} must be good"))
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["message"]) == (public, f"{public} must be good")


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})]
)
async def test_the_other_rules_of_the_api(
    start_gateway: StartGateway, orchestrator: FakeOrchestrator, path: str, body: dict[str, Any]
) -> None:
    """A key is required, unknown fields are named, OVERLOADED is a 429."""
    async with start_gateway(api_keys="secret") as server, client_of(server) as client:
        refused = await client.post(path, json=body)
        client.headers["authorization"] = "Bearer secret"
        good = await client.post(path, json={**body, "chat_template": "x", "x": 1})
        orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full"))
        full = await client.post(path, json=body)
    assert refused.status_code == 401
    assert good.status_code == 200
    assert good.headers["x-ignored-fields"] == "chat_template, x"
    assert full.status_code == 429
    assert "retry-after" in full.headers
    assert len(cast(Any, orchestrator.requests)) == 2
