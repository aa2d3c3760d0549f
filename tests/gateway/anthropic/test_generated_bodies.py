"""Generated bodies against the Messages API: no 5xx, and every unknown field is named.

`make fuzz-messages` sends 2,000 to each path.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gateway.schemas.anthropic.messages import CountTokensRequest, MessagesRequest
from tests.gateway.direct import direct_client
from tests.gateway.validation.test_fuzz import VALUES

NUM_CASES = int(os.environ.get("BODY_CASES", "40"))
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
SCHEMAS = {"/v1/messages": MessagesRequest, "/v1/messages/count_tokens": CountTokensRequest}

TEXT = st.text(max_size=12)
IDS = st.sampled_from(["a", "b"])
TEXTS = st.fixed_dictionaries(
    {"type": st.just("text"), "text": TEXT}, optional={"cache_control": st.just({"type": "x"})}
)
USER_BLOCKS = TEXTS | st.fixed_dictionaries(
    {"type": st.just("document"), "source": st.just({"type": "text", "data": "D"})},
    optional={"title": TEXT},
)
CALL = {"type": "tool_use", "id": "a", "name": "find", "input": {"q": [1]}}
HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, CALL]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
]
GOOD_MESSAGES = (
    st.just([{"role": "user", "content": "Hi"}])
    | st.just(HISTORY)
    | st.just([*HISTORY, {"role": "assistant", "content": "It"}])
    | st.lists(
        st.builds(
            lambda blocks: {"role": "user", "content": blocks},
            TEXT | st.lists(USER_BLOCKS, min_size=1, max_size=2),
        ),
        min_size=1,
        max_size=2,
    )
)
ANY_BLOCKS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                *["text", "thinking", "redacted_thinking", "tool_use", "tool_result"],
                *["document", "search_result", "image", "server_tool_use"],
            ]
        )
        | VALUES
    },
    optional={
        **dict.fromkeys(["text", "thinking", "data", "signature", "title"], TEXT | VALUES),
        **dict.fromkeys(["id", "tool_use_id", "name"], IDS | VALUES),
        **dict.fromkeys(["input", "source", "content", "is_error", "citations"], VALUES),
    },
)
BAD_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES,
            "content": TEXT | st.lists(ANY_BLOCKS, max_size=3) | VALUES,
        },
    ),
    max_size=3,
)
TOOLS: list[Any] = [
    {"name": "find", "input_schema": {"type": "object"}},
    {"type": "web_search_20250305", "name": "web_search"},
]
CHOICES = st.sampled_from(
    [
        *[{"type": "auto"}, {"type": "any", "disable_parallel_tool_use": True}, {"type": "none"}],
        {"type": "tool", "name": "find"},
    ]
)
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "system": TEXT | st.lists(TEXTS, max_size=2),
    "tools": st.just(TOOLS),
    "tool_choice": CHOICES,
    "thinking": st.sampled_from([{"type": "adaptive", "display": "omitted"}, {"type": "disabled"}]),
    "output_config": st.just({"format": {"type": "json_schema", "schema": {}}, "effort": "low"}),
}
GOOD_IN_MESSAGES: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.booleans(),
    "stop_sequences": st.lists(st.text(min_size=1, max_size=5), max_size=3),
    "metadata": st.just({"user_id": "u"}),
    "service_tier": st.just("auto"),
    "priority": st.integers(-100, 100),
}
BAD: dict[str, st.SearchStrategy[Any]] = {
    "messages": BAD_MESSAGES | VALUES,
    "tools": st.lists(
        st.fixed_dictionaries(
            {}, optional=dict.fromkeys(["type", "name", "input_schema", "description"], VALUES)
        ),
        max_size=2,
    ),
    "tool_choice": CHOICES | VALUES,
    "thinking": VALUES,
}
UNKNOWN = st.dictionaries(
    st.sampled_from(["x", "mcp_servers", "container", "n"]), VALUES.filter(bool), max_size=2
)


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies for a path, about half of which are valid."""
    is_message = path == "/v1/messages"
    known = sorted(SCHEMAS[path].model_fields)
    return st.builds(
        lambda messages, limit, good, more, bad, unknown: {
            "messages": messages,
            **limit,
            **good,
            **more,
            **bad,
            **unknown,
        },
        GOOD_MESSAGES,
        st.just({"max_tokens": 5} if is_message else {}),
        st.fixed_dictionaries({}, optional=GOOD),
        st.fixed_dictionaries({}, optional=GOOD_IN_MESSAGES if is_message else {}),
        st.just({})
        | st.fixed_dictionaries({}, optional=BAD)
        | st.dictionaries(st.sampled_from(known), VALUES, max_size=2),
        UNKNOWN,
    )


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of one application for all examples."""
    async with direct_client() as client:
        yield client


async def check_body(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> int:
    """Send a body and check its response; returns the status."""
    response = await client.post(path, content=json.dumps(body).encode())
    assert response.status_code in (200, 400), response.text
    assert response.headers["request-id"]
    if response.status_code != 200:
        error = response.json()
        assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
        assert error["error"]["message"]
        return response.status_code
    named = response.headers.get("x-ignored-fields", "").split(", ")
    given_fields = {name for name, value in body.items() if value is not None}
    assert given_fields - set(SCHEMAS[path].model_fields) <= set(named)
    if body.get("tools") == TOOLS:
        assert "tools[1]" in named
    if path.endswith("count_tokens"):
        assert response.json() == {"input_tokens": 1}
    elif body.get("stream"):
        for event in response.text.removesuffix("\n\n").split("\n\n"):
            data = json.loads(event.partition("\ndata: ")[2])
            if data["type"] != "ping":
                EVENT.validate_python(data, strict=True)
        assert data == {"type": "message_stop"}
    else:
        Message.model_validate(response.json(), strict=True)
    return response.status_code


BODIES = {path: bodies(path) for path in SCHEMAS}
STATUSES: dict[str, Counter[int]] = {path: Counter() for path in SCHEMAS}


@pytest.mark.parametrize("path", SCHEMAS)
@settings(
    max_examples=NUM_CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_no_body_is_a_5xx_and_unknown_fields_are_named(
    client: httpx.AsyncClient, path: str, data: st.DataObject
) -> None:
    """An answer is valid in the types of Anthropic's client; a refusal says why."""
    STATUSES[path][await check_body(client, path, data.draw(BODIES[path]))] += 1


@pytest.mark.parametrize("path", SCHEMAS)
def test_the_bodies_are_of_both_kinds(path: str) -> None:
    """Of those that the test before has sent."""
    statuses = STATUSES[path]
    print(path, statuses)
    if not statuses:
        pytest.skip("the test that sends them did not run")
    assert statuses[200] > statuses.total() / 5
    assert statuses[400] > statuses.total() / 10
