"""Invalid requests and their error messages."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import pytest

from tests.error_bodies import disagreement
from tests.gateway.direct import direct_client

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
SEARCH = "/api/v1/search"
USER = {"role": "user", "content": "Hi"}


async def post(path: str, body: object, **settings: object) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with direct_client(**settings) as client:
        response = await client.post(path, content=content)
    if response.status_code >= 400:
        assert disagreement(response.json()["error"]) is None
    return response


def check(response: httpx.Response, message: str, param: str | None, status: int = 400) -> None:
    """Assert that the response is OpenAI's error body with exactly this message."""
    error = response.json()["error"]
    assert response.status_code == status
    assert error["message"] == message
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert len(response.headers["x-trace-id"]) == 32


BAD_SEARCHES = [
    ({}, "query is required", "query"),
    ({"query": ""}, "query must have at least 1 character, given 0", "query"),
    ({"query": " \t "}, "query must have at least 1 character, given 0", "query"),
    ({"query": "a" * 501}, "query must have at most 500 characters, given 501", "query"),
    ({"query": f" {'é' * 501} "}, "query must have at most 500 characters, given 501", "query"),
    ({"query": "x", "num_results": 0}, "num_results must be at least 1, given {}", "num_results"),
    ({"query": "x", "num_results": 21}, "num_results must be at most 20, given {}", "num_results"),
    ({"query": "x", "num_results": "x"}, "num_results must be a whole number, given {}", None),
    ({"query": "x", "num_results": 1.5}, "num_results must be a whole number, given {}", None),
    ({"query": "x", "max_tokens": -1}, "max_tokens must be at least 1, given {}", "max_tokens"),
    ({"query": "x", "max_tokens": 2**32}, "max_tokens must be at most 4294967295, given {}", None),
    ({"query": "x", "streaming": "maybe"}, "streaming must be true or false, given {}", None),
    ({"query": "x", "safe_search": "2"}, "safe_search must be true or false, given {}", None),
    ({"query": "x", "model": "m" * 501}, "model must have at most 500 characters, given 501", None),
]


@pytest.mark.parametrize(("fields", "message", "param"), BAD_SEARCHES)
async def test_an_invalid_search_by_get_and_by_post(
    fields: dict[str, Any], message: str, param: str | None
) -> None:
    """GET and POST have the same message, with the field, its limit and the given value."""
    name, value = list(fields.items() or [("query", None)])[-1]
    async with direct_client() as client:
        got = await client.get(SEARCH, params=fields)
        posted = await client.post(SEARCH, json=fields)
    # Query parameters are strings, so a number in the message is in quotes.
    text = got.json()["error"]["message"].replace('"', "")
    assert text == message.format(value)
    assert got.status_code == 400
    check(posted, message.format(json.dumps(value)), param or name)


TRAILING_COMMA = (
    "Expecting property name enclosed in double quotes at line 2 column 8"
    if sys.version_info < (3, 13)
    else "Illegal trailing comma before end of object at line 2 column 7"
)
"""The message of Python's json module, which depends on the version."""

BAD_BODIES: list[tuple[bytes, str]] = [
    (b"", "the body must be valid JSON: Expecting value at line 1 column 1"),
    (b'{"messages": [', "the body must be valid JSON: Expecting value at line 1 column 15"),
    (b'{\n"a": 1,}', TRAILING_COMMA),
    (b'{"a": 1} x', "the body must be valid JSON: Extra data at line 1 column 10"),
    (b'{"a": "\n"}', "the body must be valid JSON: Invalid control character at line 1"),
    (b'{"a": NaN}', "the body must be valid JSON, given NaN, which JSON does not have"),
    (b'{"a": -Infinity}', "the body must be valid JSON, given -Infinity, which JSON does not"),
    (b'{"a": "\xff"}', "the body must be UTF-8, byte 7 is not"),
    (b"[" * 10_000, "the body must be valid JSON, given one nested too deeply"),
    (b'{"a": %s}' % (b"9" * 5000), "the body must be valid JSON, given a number that is too"),
    (b"[]", "the body must be a JSON object, given an array"),
    (b"null", "the body must be a JSON object, given null"),
    (b"true", "the body must be a JSON object, given a boolean"),
    (b'"x"', "the body must be a JSON object, given a string"),
]


@pytest.mark.parametrize("path", [SEARCH, CHAT, COMPLETION])
@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
async def test_a_body_that_is_not_a_json_object(path: str, body: bytes, message: str) -> None:
    """The message states the error and, if known, its position."""
    response = await post(path, body)
    given = response.json()["error"]["message"]
    assert message in given
    check(response, given, None)


BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("max_tokens", -1, "max_tokens must be at least 1, given -1"),
    ("max_tokens", 0, "max_tokens must be at least 1, given 0"),
    ("max_tokens", "5", 'max_tokens must be a whole number, given "5"'),
    ("max_tokens", 1.5, "max_tokens must be a whole number, given 1.5"),
    ("max_tokens", True, "max_tokens must be a whole number, given true"),
    ("max_tokens", 10**30, f"max_tokens must be at most 4294967295, given {10**30}"),
    ("temperature", -0.1, "temperature must be at least 0, given -0.1"),
    ("temperature", 2.1, "temperature must be at most 2, given 2.1"),
    ("temperature", "hot", 'temperature must be a number, given "hot"'),
    ("temperature", [1], "temperature must be a number, given an array"),
    ("top_p", 0, "top_p must be more than 0, given 0"),
    ("top_p", 1.1, "top_p must be at most 1, given 1.1"),
    ("top_k", -2, "top_k must be at least -1, given -2"),
    ("min_p", 1.5, "min_p must be at most 1, given 1.5"),
    ("seed", 2**64, f"seed must be at most {2**64 - 1}, given {2**64}"),
    ("stop", ["a"] * 5, "stop must have at most 4 items, given 5"),
    ("stop", ["a", ""], "stop[1] must have 1 to 256 characters, given 0"),
    ("stop", "", "stop must have 1 to 256 characters, given 0"),
    ("stop", ["a" * 257], "stop[0] must have 1 to 256 characters, given 257"),
    ("stop", [1], "stop[0] must be a string, given 1"),
    ("stop", {"a": 1}, "stop must be an array, given an object"),
    ("presence_penalty", 3, "presence_penalty must be at most 2, given 3"),
    ("frequency_penalty", -3, "frequency_penalty must be at least -2, given -3"),
    ("repetition_penalty", 1e-40, "repetition_penalty must be at least 0.01, given 1e-40"),
    ("logit_bias", {"a": 1}, 'logit_bias must have token ids as its keys, given "a"'),
    ("logit_bias", {"5": 101}, "logit_bias[5] must be at most 100, given 101"),
    ("logit_bias", {"5": "x"}, 'logit_bias[5] must be a number, given "x"'),
    ("logit_bias", [], "logit_bias must be an object, given an array"),
    ("min_tokens", -1, "min_tokens must be at least 0, given -1"),
    ("ignore_eos", "no", 'ignore_eos must be true or false, given "no"'),
    ("stream", 1, "stream must be true or false, given 1"),
    ("stream_options", True, "stream_options must be an object, given true"),
    ("n", 0, "n must be at least 1, given 0"),
    ("n", 33, "n must be at most 32, given 33"),
    ("user", 5, "user must be a string, given 5"),
    ("model", 5, "model must be a string, given 5"),
]
BAD_CHAT_FIELDS: list[tuple[str, Any, str]] = [
    ("messages", None, "messages is required"),
    ("messages", [], "messages must have at least 1 item, given 0"),
    ("messages", "Hi", 'messages must be an array, given "Hi"'),
    ("messages", ["Hi"], 'messages[0] must be an object, given "Hi"'),
    ("messages", [{"content": "Hi"}], "messages[0].role is required"),
    ("messages", [USER, {"role": "user"}], "messages[1].content is required"),
    ("messages", [{"role": "user", "content": 5}], "messages[0].content must be a string, given 5"),
    (
        "messages",
        [{"role": "user", "content": [{"type": "image_url"}]}],
        "messages[0].content[0].type must be 'text', given \"image_url\"",
    ),
    (
        "messages",
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        "messages[0].content[0].text must be a string, given 5",
    ),
    ("messages", [{"role": "user", "content": [5]}], "messages[0].content[0] must be an object"),
    (
        "messages",
        [{"role": "user", "content": ["text"]}],
        'messages[0].content[0] must be an object, given "text"',
    ),
    ("top_logprobs", 21, "top_logprobs must be at most 20, given 21"),
    ("top_logprobs", 2, "top_logprobs must come with logprobs true, given false"),
    ("response_format", {"type": "xml"}, "response_format.type must be 'text', 'json_object' or"),
    ("response_format", {"type": "json_schema"}, "response_format.json_schema is required"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x"}},
        "response_format.json_schema.schema is required",
    ),
    ("tool_choice", "required", "tool_choice must come with tools, given none"),
    ("tool_choice", "f", 'tool_choice must be "auto", "none", "required" or a tool'),
    ("tool_choice", {"type": "function"}, "tool_choice must be a string, or {"),
    ("tools", [5], "tools[0] must be an object, given a number"),
    ("tools", [{"type": "x"}], "tools[0].type must be 'function', given \"x\""),
    ("tools", [{"type": "function"}], "tools[0].function must be an object, given null"),
    (
        "tools",
        [{"type": "function", "function": {"name": "a b"}}],
        "tools[0].function.name must be 1 to 64 letters, digits, '_', '.' or '-', given \"a b\"",
    ),
    (
        "tools",
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
        "tools[0].function.parameters.type must be 'object', given \"string\"",
    ),
    (
        "tools",
        [{"type": "function", "function": {"name": "f", "parameters": []}}],
        "tools[0].function.parameters must be an object, given an array",
    ),
    ("tools", {}, "tools must be an array, given an object"),
    ("best_of", 2, "best_of must be 1, given 2"),
    ("max_completion_tokens", 0, "max_completion_tokens must be at least 1, given 0"),
    ("tools", [{"x": "\ud800"}], "tools[0].x must be Unicode text, given a lone surrogate"),
]
BAD_COMPLETION_FIELDS: list[tuple[str, Any, str]] = [
    ("prompt", None, "prompt is required"),
    ("prompt", 5, "prompt must be text or token ids, given 5"),
    ("prompt", [], "prompt must have at least 1 token id, given 0"),
    ("prompt", ["a"] * 33, "prompt must have at most 32 prompts, given 33"),
    ("prompt", ["a", 5], "prompt[1] must be text or token ids, given 5"),
    ("prompt", [[1], []], "prompt[1] must have at least 1 token id, given 0"),
    ("prompt", [1.5], "prompt[0] must be a token id from 0 to 4294967295, given 1.5"),
    ("prompt", [[1], [2, -1]], "prompt[1][1] must be a token id from 0 to 4294967295, given -1"),
    ("prompt", [1, -1], "prompt[1] must be a token id from 0 to 4294967295, given -1"),
    ("prompt", [1, True], "prompt[1] must be a token id from 0 to 4294967295, given true"),
    ("prompt", [1, "a"], 'prompt[1] must be a token id from 0 to 4294967295, given "a"'),
    ("logprobs", 21, "logprobs must be at most 20, given 21"),
    ("logprobs", True, "logprobs must be a whole number, given true"),
    ("echo", 1, "echo must be true or false, given 1"),
    ("best_of", 2, "best_of must be 1, given 2"),
    ("suffix", "x", 'suffix must be "", given "x"'),
    ("stop", "\udc00", "stop must be Unicode text, given a lone surrogate"),
    ("prompt", "a\ud83d", "prompt must be Unicode text, given a lone surrogate"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS + BAD_CHAT_FIELDS)
async def test_an_invalid_chat_field(field: str, value: Any, message: str) -> None:
    """The message names field, limit and given value."""
    response = await post(CHAT, {"messages": [USER], field: value})
    error = response.json()["error"]
    assert error["message"].startswith(message)
    check(response, error["message"], message.partition(" ")[0])


@pytest.mark.parametrize(("field", "value", "message"), BAD_FIELDS + BAD_COMPLETION_FIELDS)
async def test_an_invalid_completion_field(field: str, value: Any, message: str) -> None:
    """The message names field, limit and given value."""
    check(await post(COMPLETION, {"prompt": "x", field: value}), message, message.split(" ")[0])


async def test_overflowing_numbers_are_rejected() -> None:
    """Python parses 1e999 as infinity, which is rejected at any depth."""
    response = await post(COMPLETION, b'{"prompt": "x", "temperature": 1e999}')
    check(response, "temperature must be a finite number, given Infinity", "temperature")
    tool = b'{"type": "function", "function": {"name": "f", "parameters": {"a": 1e999}}}'
    nested = b'{"messages": [{"role": "user", "content": "x"}], "tools": [%s]}' % tool
    response = await post(CHAT, nested)
    check(response, "tools must hold finite numbers, given others", "tools")


async def test_a_long_value_is_truncated_in_the_message() -> None:
    """The message quotes a prefix of the value."""
    response = await post(COMPLETION, {"prompt": "x", "temperature": "y" * 10_000})
    assert len(response.json()["error"]["message"]) < 200


async def test_a_body_too_large_is_413() -> None:
    """The limit applies with Content-Length and with a chunked body."""
    async with direct_client(max_body_bytes=100) as client:
        declared = await client.post(COMPLETION, content=b"x" * 101)

        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(3):
                yield b"x" * 50

        chunked = await client.post(COMPLETION, content=chunks())
    check(declared, "the body must be at most 100 bytes, given 101", None, 413)
    check(chunked, "the body must be at most 100 bytes, given more", None, 413)


async def test_unknown_routes_and_methods() -> None:
    """404 and 405 have the error body; a 405 lists the allowed methods."""
    async with direct_client() as client:
        nowhere = await client.get("/v1/nothing")
        trailing = await client.post("/v1/completions/")
        method = await client.delete(SEARCH)
        odd = await client.request("BREW", "/v1/models")
    check(nowhere, "there is no route GET /v1/nothing", None, 404)
    check(trailing, "there is no route POST /v1/completions/", None, 404)
    check(method, f"{SEARCH} takes GET, POST, given DELETE", None, 405)
    check(odd, "/v1/models takes GET, given BREW", None, 405)
    assert method.headers["allow"] == "GET, POST"
