"""Errors of the four processes name the field as the client wrote it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.e2e.support.stack import Stack
from tests.error_bodies import disagreement

pytestmark = pytest.mark.timeout(180)

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SEARCH = "/api/v1/search"
TOKENIZE, DETOKENIZE, RERANK, SCORE = "/tokenize", "/detokenize", "/v1/rerank", "/v1/score"
USER = {"role": "user", "content": "Hi"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    COMPLETION: {"prompt": "Hi"},
    EMBEDDING: {},
    SEARCH: {"query": "Hi"},
    TOKENIZE: {},
    DETOKENIZE: {},
    RERANK: {"query": "Hi", "documents": ["a"]},
    SCORE: {"text_1": "a", "text_2": "b"},
}
UNKNOWN_ID = 10_000_000
LONG = "word " * 20_000
NESTED: Any = {}
for _ in range(120):
    NESTED = {"a": NESTED}

WRONG: Any = {"type": "object", "properties": {"a": {"type": "nonsense"}}}


def tool(parameters: object) -> dict[str, Any]:
    """A function with a schema."""
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def called(calls: object) -> list[dict[str, Any]]:
    """A conversation whose second message has tool calls."""
    return [USER, {"role": "assistant", "content": "", "tool_calls": calls}]


NAMED = {"type": "function", "function": {"name": "g"}}
CASES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"logit_bias": {str(UNKNOWN_ID): 1}}, "logit_bias"),
    (CHAT, {"logit_bias": dict.fromkeys(map(str, range(301)), 1)}, "logit_bias"),
    (CHAT, {"min_tokens": 100_000}, "min_tokens"),
    (CHAT, {"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    (CHAT, {"max_tokens": 100_000}, "max_tokens"),
    (CHAT, {"max_completion_tokens": 100_000}, "max_completion_tokens"),
    (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
    (CHAT, {"messages": [{"role": "a b", "content": "Hi"}]}, "messages[0].role"),
    (CHAT, {"messages": called([{"function": 5}])}, "messages[1].tool_calls"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"x": NESTED}}, "chat_template_kwargs"),
    (CHAT, {"tools": [tool(NESTED)]}, "tools"),
    (CHAT, {"tools": [tool(WRONG)], "tool_choice": "required"}, "tools"),
    (CHAT, {"tools": [tool({})], "tool_choice": NAMED}, "tool_choice.function.name"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": WRONG}}},
        "response_format.json_schema.schema",
    ),
    (CHAT, {"model": "none"}, "model"),
    (COMPLETION, {"prompt": [UNKNOWN_ID]}, "prompt"),
    (COMPLETION, {"prompt": [UNKNOWN_ID], "echo": True}, "prompt"),
    (COMPLETION, {"prompt": [[1], [UNKNOWN_ID]]}, "prompt[1]"),
    (COMPLETION, {"prompt": ["a", LONG]}, "prompt[1]"),
    (COMPLETION, {"prompt": LONG}, "prompt"),
    (COMPLETION, {"max_tokens": 100_000}, "max_tokens"),
    (COMPLETION, {"stop": ["a", "b" * 300]}, "stop[1]"),
    (EMBEDDING, {"input": [UNKNOWN_ID]}, "input"),
    (EMBEDDING, {"input": [[1], [UNKNOWN_ID]]}, "input[1]"),
    (EMBEDDING, {"input": LONG}, "input"),
    (EMBEDDING, {"input": [5] * 9000}, "input"),
    (EMBEDDING, {"input": [[5], [5] * 9000]}, "input[1]"),
    (EMBEDDING, {"input": [1.5]}, "input[0]"),
    (EMBEDDING, {"input": [[1], [2, -1]]}, "input[1][1]"),
    (EMBEDDING, {"input": ["a", LONG]}, "input[1]"),
    (TOKENIZE, {"prompt": "a", "model": "none"}, "model"),
    (TOKENIZE, {"messages": [{"role": "a b", "content": "Hi"}]}, "messages[0].role"),
    (
        TOKENIZE,
        {"messages": [USER], "chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
    ),
    (DETOKENIZE, {"tokens": [1, UNKNOWN_ID]}, "tokens[1]"),
    (RERANK, {"documents": ["a", LONG]}, "documents[1]"),
    (RERANK, {"query": LONG}, "query"),
    (SCORE, {"text_2": ["a", LONG]}, "text_2[1]"),
    (SCORE, {"text_1": ["a", LONG], "text_2": ["b", "c"]}, "text_1[1]"),
    (EMBEDDING, {"input": "a", "dimensions": 90_000}, "dimensions"),
    (SEARCH, {"max_tokens": 100_000}, "max_tokens"),
    (SEARCH, {"model": "none"}, "model"),
]
FOREIGN = re.compile(r"_json\b|constraint|\w*num_(prompt_)?logprobs|sampling\.|token_ids")
"""Names that only the services use."""


@pytest.fixture
async def http(instruct_stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a gateway whose model has a chat template with tools."""
    async with httpx.AsyncClient(
        base_url=instruct_stack.url, timeout=30, trust_env=False
    ) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
async def test_param_is_the_path_in_the_clients_body(http: httpx.AsyncClient, stream: bool) -> None:
    """Errors of gateway, orchestrator, tokenizer and engine, streamed and not."""
    for path, body, param in CASES:
        flag = {"stream": stream} if path in (CHAT, COMPLETION) else {}
        response = await http.post(path, json={**BODIES[path], **body, **flag})
        error = response.json()["error"]
        where = (path, str(body)[:200], error)
        assert disagreement(error) is None, where
        assert response.status_code == (404 if body.get("model") else 400), where
        found = error["param"] or ""
        assert found == param or found.startswith((f"{param}.", f"{param}[")), where
        assert not FOREIGN.search(error["message"].replace("chat_template_kwargs", "")), where
        if LONG in str(body) or 100_000 in body.values():
            opening = "This model's maximum context length is "
            assert error["message"].startswith(opening) or param == "min_tokens", where
            assert error["code"] == ("context_length_exceeded" if param != "min_tokens" else None)
