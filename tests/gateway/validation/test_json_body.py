"""The number of values of a body is limited: their parser blocks all threads until its end."""

from __future__ import annotations

import json
import random

import pytest

from gateway.validation.json_body import (
    MANY_VALUES,
    MAX_MEMBERS,
    MAX_VALUES,
    MAX_VALUES_WITH_IDS,
    parse_json,
)
from mesh.errors import MeshError
from tests.gateway.direct import direct_client

QUOTED = '{"a": [1, "b", {"c": "\\" \\\\"}]} , : [ { '


def repeated(item: bytes, number: int) -> bytes:
    """A JSON array."""
    return b"[" + b",".join([item] * number) + b"]"


def nested(number: int) -> bytes:
    """`number` members, each in an object of its own array."""
    return repeated(b'{ "a" : [] }', number)


@pytest.mark.parametrize(
    ("body", "limit", "given"),
    [
        (repeated(b"1", MAX_VALUES + 1), "values", MAX_VALUES + 1),
        (repeated(b"[]", MAX_VALUES), "values", 2 * MAX_VALUES),
        (nested(MAX_MEMBERS + 1), "members together", MAX_MEMBERS + 1),
        (repeated(b'{"a": 1, "b": 2}', MAX_MEMBERS // 2 + 1), "members together", MAX_MEMBERS + 2),
    ],
)
def test_too_many_values_are_refused_before_they_are_parsed(
    body: bytes, limit: str, given: int
) -> None:
    """The message names the limit and the number."""
    with pytest.raises(MeshError) as raised:
        parse_json(body)
    assert f"{limit}, given {given}" in raised.value.message


def test_text_is_not_counted() -> None:
    """However many brackets, commas, colons, quotes and backslashes it has."""
    value = {"content": QUOTED * 20_000, 'ke"y\\': "\\"}
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_random_strings_are_counted_exactly() -> None:
    """Strings of the characters that matter, until one value more exceeds the limit."""
    chosen = random.Random(1)
    texts = ["".join(chosen.choices('"\\,:[{ ', k=20)) for _ in range(1000)]
    for separators in ((",", ":"), (" , ", " : ")):
        value = [*texts, *([0] * (MAX_VALUES - len(texts)))]
        body = json.dumps(value, separators=separators).encode()
        assert parse_json(body) == value
        with pytest.raises(MeshError, match=f"at most {MAX_VALUES} values, given"):
            parse_json(body[:-1] + b",0]")


@pytest.mark.parametrize(
    ("ending", "problem"),
    [
        (b"}", "expected `,` or `]` at line 1 column"),
        (b",NaN]", "expected value at line 1 column"),
        (b',"\xff"]', "invalid unicode"),
        (b',"\\ud800 "]', "unexpected end of hex escape"),
        (b"," + b"[" * 1000, "recursion limit"),
        (b"," + b"9" * 5000 + b"]", "number out of range"),
    ],
)
def test_a_broken_body_with_many_values_is_refused(ending: bytes, problem: str) -> None:
    """Its parser is another one than that of bodies with few values."""
    body = repeated(b"7", MANY_VALUES + 1)[:-1] + ending
    with pytest.raises(MeshError) as raised:
        parse_json(body)
    assert raised.value.message.startswith("the body must be valid JSON: ")
    assert problem in raised.value.message


async def test_only_bodies_with_token_ids_may_have_many_values() -> None:
    """300,000 ids are accepted where OpenAI accepts them; elsewhere a value is a value."""
    ids = [[7] * 30_000] * 10
    async with direct_client(max_body_bytes=2**22) as client:
        for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
            response = await client.post(path, json={"model": "", field: ids})
            assert response.status_code == 200, response.text
            response = await client.post(path, json={"model": "", field: [[7] * 35_001] * 10})
            limit = f"the body must have at most {MAX_VALUES_WITH_IDS} values, given"
            assert response.json()["error"]["message"].startswith(limit)
        chat = {"model": "", "messages": [{"role": "user", "content": "Hi"}], "metadata": ids}
        response = await client.post("/v1/chat/completions", json=chat)
    limit = f"the body must have at most {MAX_VALUES} values, given"
    assert response.json()["error"]["message"].startswith(limit)
