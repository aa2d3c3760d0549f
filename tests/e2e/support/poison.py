"""Requests that a client should not send: none may affect an engine or another client."""

from __future__ import annotations

import random
from typing import Any

CHAT: dict[str, Any] = {
    "model": "",
    "messages": [{"role": "user", "content": "What is a weir?"}],
    "max_tokens": 16,
}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    json_schema = {"name": "poison", "schema": schema}
    return {**CHAT, "response_format": {"type": "json_schema", "json_schema": json_schema}}


def _with_tool(parameters: dict[str, Any]) -> dict[str, Any]:
    tools = [
        {"type": "function", "function": {"name": "good"}},
        {"type": "function", "function": {"name": "bad", "parameters": parameters}},
    ]
    return {**CHAT, "tools": tools, "tool_choice": "required"}


def poison(seed: int) -> dict[str, dict[str, Any]]:
    """Bodies for /v1/chat/completions by name, each to be refused with 400.

    Different seeds give different texts of the schemas, so that no cache has them.
    """
    rng = random.Random(seed)
    salt = {"title": str(rng.random())}
    slow = {"type": "integer", "multipleOf": 999983, **salt}
    return {
        "schema nested too deeply": _with_schema({**_nested(130), **salt}),
        "schema nested much too deeply": _with_schema({**_nested(400), **salt}),
        "schema that compiles too long": _with_schema(slow),
        "schema that is no schema": _with_schema({"properties": {"a": {"type": "x"}}, **salt}),
        "schema with an infinite bound": _with_schema({"const": 10**400, **salt}),
        "tool nested too deeply": _with_tool({**_nested(130), **salt}),
        "tool that compiles too long": _with_tool({"properties": {"n": slow}}),
        "tool with a lookahead": _with_tool({"properties": {"mail": {"pattern": "^(?=a)"}}}),
        "penalty that overflows": {**CHAT, "repetition_penalty": 1e-40},
        "token outside the vocabulary": {**CHAT, "logit_bias": {str(2**31): 1}},
    }
