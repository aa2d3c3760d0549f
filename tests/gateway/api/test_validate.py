"""`/api/v1/validate` lists the problems of a search request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.direct import direct_client

VALIDATE, SEARCH = "/api/v1/validate", "/api/v1/search"

CASES: list[tuple[dict[str, Any], list[tuple[str, str]]]] = [
    ({"query": "  what is\ta\nweir 🦫 "}, []),
    ({"query": "a" * 500, "num_results": 20, "max_tokens": 1, "safe_search": True}, []),
    ({"query": "a", "unknown": 1, "model": None}, []),
    ({}, [("query", "required")]),
    ({"query": " \n "}, [("query", "at least 1 character, given 0")]),
    ({"query": "a" * 501}, [("query", "at most 500 characters, given 501")]),
    ({"query": "a\x00b"}, [("query", "given U+0000 as character 2")]),
    ({"query": "a\x1b[2Jb"}, [("query", "given U+001B")]),
    ({"query": "a\x9fb"}, [("query", "given U+009F")]),
    ({"query": "a\ud800"}, [("query", "lone surrogate")]),
    ({"query": 7, "num_results": 21}, [("query", "must be a string"), ("num_results", "20")]),
    ({"query": "a", "max_tokens": 0}, [("max_tokens", "at least 1, given 0")]),
    ({"query": "a", "model": "fake"}, []),
]


@pytest.mark.parametrize(("body", "problems"), CASES)
async def test_validate_lists_the_problems_of_a_search(
    body: dict[str, Any], problems: list[tuple[str, str]]
) -> None:
    """Every invalid field is listed; a search is rejected with the first of these messages."""
    async with direct_client() as client:
        content = json.dumps(body).encode()
        checked = (await client.post(VALIDATE, content=content)).json()
        searched = await client.post(SEARCH, content=content)
    assert checked["valid"] is (not problems)
    assert [problem["param"] for problem in checked["problems"]] == [param for param, _ in problems]
    for problem, (_, words) in zip(checked["problems"], problems, strict=True):
        assert words in problem["message"]
    if problems:
        assert checked["query"] is None
        assert searched.status_code == 400
        assert searched.json()["error"]["message"] == checked["problems"][0]["message"]
    else:
        assert checked["query"] == body["query"].strip()
        assert searched.status_code == 200


async def test_a_model_that_is_not_served_is_a_problem() -> None:
    """As the search itself says; the other problems come first."""
    async with direct_client() as client:
        for path in (VALIDATE, SEARCH):
            answer = (await client.post(path, json={"query": "a", "model": "none"})).json()
            problem = answer["problems"][0] if path == VALIDATE else answer["error"]
            assert problem["param"] == "model"
            assert problem["message"] == "no model 'none' is served; served models: fake"
        both = {"query": "", "model": "none"}
        [problem] = (await client.post(VALIDATE, json=both)).json()["problems"]
    assert problem["param"] == "query"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"null"])
async def test_a_body_that_is_not_a_json_object_is_rejected(content: bytes) -> None:
    """The answer is a 400 instead of a list of problems."""
    async with direct_client() as client:
        response = await client.post(VALIDATE, content=content)
    assert response.status_code == 400


async def test_openapi_describes_validate() -> None:
    """Its request has the schema of a search."""
    async with direct_client() as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"][VALIDATE]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/SearchRequest"}
    assert "ValidationAnswer" in str(operation["responses"]["200"])
