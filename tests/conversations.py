"""Generates conversations as clients send them: valid, unusual and invalid ones."""

from __future__ import annotations

import json
from random import Random
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "us er", "", 7)
WORDS = (
    *("weir", "é", "日本", "🌊", "\n\n", "<|im_end|>", "<tool_call>", "\u202e", "{{ 1 }}", "\x00"),
)
ARGUMENTS = (
    *('{"x": 1}', "{}", "", "null", '{"x": "cut of', "[1, 2]", '{"x": "raw\nline"}', '"text"'),
    *('{"x": "bad \\escape"}', '{"x": "\\ud800"}', "not JSON", "7", "[" * 3000, "9" * 5000),
    *(None, 3, True, ["list"], {"x": 1}, {"x": {"y": [None]}}),
)
NAMES = ("get_level", "get_level", "unknown", "", None, 7, "a b", "日本")


def random_body(random: Random) -> dict[str, Any]:
    """A body of /v1/chat/completions that generates at most one token."""
    is_long = random.random() < 0.02
    num_messages = random.choice((300, 2048, 2049)) if is_long else random.randrange(1, 8)
    body: dict[str, Any] = {
        "model": "",
        "max_tokens": 1,
        "messages": [_message(random) for _ in range(num_messages)],
    }
    if random.random() < 0.4:
        body["tools"] = [_tool(random) for _ in range(random.randrange(0, 4))]
    if random.random() < 0.1:
        body["tool_choice"] = random.choice(("auto", "none", "required"))
    if random.random() < 0.1:
        body["continue_final_message"] = True
    if random.random() < 0.1:
        body["chat_template_kwargs"] = random.choice(
            ({}, {"enable_thinking": False}, {"messages": []}, {"x": [[1]]}, {"bos_token": "x"})
        )
    if random.random() < 0.1:
        body["stream"] = True
    return body


def _message(random: Random) -> Any:
    if random.random() < 0.01:
        return random.choice((None, 7, [], "text"))
    role = random.choice(ROLES[:5]) if random.random() < 0.97 else random.choice(ROLES)
    message: dict[str, Any] = {"role": role}
    if random.random() < 0.95:
        message["content"] = _content(random)
    if role == "assistant" and random.random() < 0.5:
        message["tool_calls"] = _tool_calls(random)
    if role == "assistant" and random.random() < 0.3:
        message[random.choice(("reasoning_content", "reasoning"))] = _text(random)
    if role == "tool" and random.random() < 0.9:
        message["tool_call_id"] = random.choice(("abcdefghi", "call_1", ""))
    if random.random() < 0.1:
        message["name"] = random.choice(("ada", "", None))
    return message


def _content(random: Random) -> Any:
    kind = random.random()
    if kind < 0.7:
        return _text(random)
    if kind < 0.8:
        return None
    if kind < 0.97:
        return [{"type": "text", "text": _text(random)} for _ in range(random.randrange(0, 4))]
    return random.choice(([{"type": "image_url"}], [None], 7, {}, ["text"], "\ud800"))


def _text(random: Random) -> str:
    num_words = random.choice((0, 1, 5, 50)) if random.random() < 0.995 else 100_000
    return " ".join(random.choices(WORDS, k=num_words))


def _tool_calls(random: Random) -> Any:
    if random.random() < 0.05:
        return random.choice((None, [], [None], [{}], "text", [{"function": 7}], [{"id": []}]))
    return [
        {
            "id": random.choice(("abcdefghi", "call_1")),
            "type": "function",
            "function": {
                "name": random.choice(NAMES) if random.random() < 0.1 else "get_level",
                "arguments": random.choice(ARGUMENTS),
            },
        }
        for _ in range(random.randrange(1, 4))
    ]


def _tool(random: Random) -> Any:
    if random.random() < 0.05:
        return random.choice((None, {}, {"type": "web_search"}, {"type": "function"}))
    parameters: Any = {"type": "object", "properties": {"x": {"type": "string"}}}
    for _ in range(random.choice((0, 0, 0, 3, 60, 200))):
        parameters = {"type": "object", "properties": {"x": parameters}}
    function = {"name": "get_level", "description": _text(random), "parameters": parameters}
    return {"type": "function", "function": function}


def encoded(body: dict[str, Any]) -> bytes:
    """The body as JSON; lone surrogates are escaped."""
    return json.dumps(body).encode()
