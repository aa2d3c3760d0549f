"""Property tests with random bodies and query strings: the answer is never a 5xx."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.direct import direct_client

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\ud800", "\x00", "true", "text"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["type", "5"]), inner, max_size=4)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    "model messages prompt query max_tokens temperature top_p top_k min_p seed stop n stream "
    "stream_options logit_bias logprobs top_logprobs tools tool_choice response_format "
    "system stop_sequences thinking output_config metadata "
    "num_results streaming safe_search echo suffix chat_template_kwargs min_tokens".split()
)
TEXTS = st.fixed_dictionaries({"type": st.just("text"), "text": VALUES})
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["thinking", "tool_use", "tool_result", "document"]) | VALUES},
    optional={
        **dict.fromkeys(["id", "name", "input", "source", "content", "is_error"], VALUES),
        "tool_use_id": st.just("a") | VALUES,
        "thinking": st.just("x") | VALUES,
    },
)
PARTS = st.lists(TEXTS | BLOCKS, max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.just("user") | VALUES, "content": PARTS | VALUES},
        optional={"tool_calls": VALUES, "name": VALUES},
    ),
    max_size=3,
)
BODIES = st.builds(
    lambda fixed, free: {**fixed, **free},
    st.fixed_dictionaries(
        {
            "messages": MESSAGES,
            "prompt": st.just("x"),
            "query": st.just("x"),
            "max_tokens": st.just(5),
        }
    ),
    st.dictionaries(FIELDS, VALUES, max_size=4),
)
PATHS = st.sampled_from(
    [
        *("/v1/chat/completions", "/v1/completions", "/api/v1/search"),
        *("/v1/messages", "/v1/messages/count_tokens"),
    ]
)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of one application for all examples of a test."""
    async with direct_client() as client:
        yield client


fuzz = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@fuzz
@given(path=PATHS, body=BODIES)
async def test_any_json_object_is_200_or_400(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """Every JSON object is answered with 200 or 400."""
    response = await client.post(path, content=json.dumps(body).encode())
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]


@fuzz
@given(path=PATHS, content=st.binary(max_size=200) | st.text(max_size=100))
async def test_any_bytes_are_400(
    client: httpx.AsyncClient, path: str, content: bytes | str
) -> None:
    """Random bytes, which are not a JSON object, are answered with 400."""
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    response = await client.post(path, content=raw)
    assert response.status_code == 400, response.text


@fuzz
@given(query=st.binary(max_size=100))
async def test_any_query_string_is_200_or_400(client: httpx.AsyncClient, query: bytes) -> None:
    """Every query string is answered with 200 or 400."""
    text = "".join(f"%{byte:02x}" if byte < 33 or byte > 126 else chr(byte) for byte in query)
    response = await client.get(f"/api/v1/search?query={text.replace('#', '')}")
    assert response.status_code in (200, 400), response.text
