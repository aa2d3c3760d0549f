"""Generated bodies, ids and queries against `/v1/responses…`: no 5xx, unknown fields are named.

`make fuzz-responses` sends 2,000 to each path.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.schemas.responses.queries import InputItemsQuery, RetrieveQuery
from gateway.schemas.responses.request import ResponsesRequest
from tests.gateway.direct import direct_client
from tests.gateway.responses.events import parse_events, parse_part
from tests.gateway.validation.test_fuzz import VALUES

NUM_CASES = int(os.environ.get("BODY_CASES", "25"))

TEXT = st.text(max_size=12)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["input_text", "output_text", "refusal", "input_image"])},
        optional={"text": TEXT, "refusal": TEXT, "annotations": VALUES},
    ),
    max_size=2,
)
KINDS = [
    *["message", "function_call", "function_call_output", "reasoning"],
    *["web_search_call", "item_reference", "mcp_call", "computer_call"],
]
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | VALUES,
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | VALUES,
        "content": TEXT | PARTS | VALUES,
        "call_id": TEXT | VALUES,
        "name": TEXT | VALUES,
        "arguments": TEXT | VALUES,
        "output": TEXT | PARTS | VALUES,
        "summary": PARTS | VALUES,
        "id": TEXT | VALUES,
    },
)
TOOLS = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "web_search", "file_search", "mcp", "custom"]) | VALUES},
    optional={
        "name": st.sampled_from(["find", "web_search", "é"]) | VALUES,
        "parameters": st.just({"type": "object"}) | VALUES,
        "max_num_results": VALUES,
    },
)
CHOICES = st.sampled_from(
    [
        *["auto", "none", "required"],
        {"type": "function", "name": "find"},
        {"type": "web_search"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "find"}]},
    ]
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "input": TEXT | st.just([{"role": "user", "content": "Hi"}]),
    "tools": st.just([{"type": "function", "name": "find"}, {"type": "web_search"}]),
    "tool_choice": CHOICES,
    "text": st.just({"format": {"type": "json_schema", "name": "a", "schema": {}}}),
    "metadata": st.dictionaries(TEXT, TEXT, max_size=3),
    "stream": st.booleans(),
    "store": st.booleans(),
    "background": st.booleans(),
    "previous_response_id": st.just("resp_" + "0" * 48),
}
BAD: dict[str, st.SearchStrategy[Any]] = {
    "input": TEXT | st.lists(ITEMS, max_size=3) | VALUES,
    "tools": st.lists(TOOLS, max_size=3) | VALUES,
    "tool_choice": CHOICES | VALUES,
}
KNOWN = sorted(ResponsesRequest.model_fields)
UNKNOWN = st.dictionaries(
    st.sampled_from(["x", "vendor_option", "logprobs", "n"]), VALUES.filter(bool), max_size=2
)
BODIES = st.builds(
    lambda good, bad, unknown: {"input": "Hi", **good, **bad, **unknown},
    st.fixed_dictionaries({}, optional=GOOD),
    st.fixed_dictionaries({}, optional=BAD)
    | st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=2)
    | st.just({}),
    UNKNOWN,
)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of one application for all examples."""
    async with direct_client() as client:
        yield client


@settings(
    max_examples=NUM_CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(body=BODIES)
async def test_no_body_is_a_5xx_and_unknown_fields_are_named(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    """A stream is valid; a refusal names its field."""
    response = await client.post("/v1/responses", content=json.dumps(body).encode())
    # Responses in the background are bounded.
    assert response.status_code in (200, 400, 404, 429), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        return
    named = response.headers.get("x-ignored-fields", "").split(", ")
    given_fields = {name for name, value in body.items() if value is not None}
    assert given_fields - set(KNOWN) <= set(named)
    if body.get("stream"):
        parse_events(response.text)
    else:
        assert response.json()["object"] == "response"


STORED = [
    {"input": "Hi"},
    {"input": [{"role": "user", "content": "Hi", "id": "msg_1"}], "background": True},
    {"input": "Hi", "background": True, "stream": True},
    {"input": "Hi", "tools": [{"type": "web_search"}], "tool_choice": "required"},
]
ONE = "/v1/responses/{id}"
QUERIES: dict[tuple[str, str], frozenset[str]] = {
    ("GET", ONE): frozenset(RetrieveQuery.model_fields),
    ("GET", f"{ONE}/input_items"): frozenset(InputItemsQuery.model_fields),
    ("POST", f"{ONE}/cancel"): frozenset(),
    ("DELETE", ONE): frozenset(),
}
"""Fields of the queries of the paths with an id."""

SOME_QUERIES = st.dictionaries(
    st.sampled_from(["limit", "after", "order", "stream", "starting_after", "include", "x"]),
    TEXT | st.sampled_from(["1", "5", "true", "asc", "desc", "msg_1", "-1", "1e9"]),
    max_size=3,
)
OTHER_IDS = TEXT.filter(lambda id: id.strip("/. ")) | st.just("resp_" + "0" * 48)


@pytest.mark.parametrize("operation", QUERIES)
@settings(
    max_examples=NUM_CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(stored=st.sampled_from(STORED), other=st.none() | OTHER_IDS, query=SOME_QUERIES, body=VALUES)
async def test_no_id_or_query_is_a_5xx(
    client: httpx.AsyncClient,
    operation: tuple[str, str],
    stored: dict[str, Any],
    other: str | None,
    query: dict[str, str],
    body: object,
) -> None:
    """Of a stored response or another id; a body is ignored where none is expected."""
    method, path = operation
    made = await client.post("/v1/responses", json=stored)
    if made.status_code == 429:
        return  # too many in the background
    whole = parse_events(made.text)[-1]["response"] if stored.get("stream") else made.json()
    url = path.format(id=quote(whole["id"] if other is None else other, safe=""))
    content = json.dumps(body).encode()
    response = await client.request(method, url, params=query, content=content)
    assert response.status_code in (200, 400, 404, 405), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]
        return
    if response.headers["content-type"].startswith("text/event-stream"):
        parse_part(response.text)
    else:
        assert response.json()["object"] in ("response", "list")
    named = set(response.headers.get("x-ignored-fields", "").split(", "))
    if known := QUERIES[operation]:
        assert set(query) - known <= named
