"""Generated bodies against the paths without generation: no 5xx, every unknown field is named.

`make fuzz-paths` sends 2,000 to each path.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.direct import direct_client
from tests.gateway.validation.test_fuzz import VALUES

NUM_CASES = int(os.environ.get("BODY_CASES", "20"))

TEXT = st.text(max_size=8)
TEXTS = st.lists(TEXT, min_size=1, max_size=3)
FLAG = st.booleans()
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), min_size=1, max_size=2
)
Fields = Mapping[str, st.SearchStrategy[Any]]

TOKENIZE: Fields = {
    "prompt": TEXT,
    "messages": MESSAGES,
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
    "add_generation_prompt": FLAG,
    "continue_final_message": FLAG,
    "chat_template_kwargs": st.dictionaries(TEXT, TEXT, max_size=2),
    "add_special_tokens": FLAG,
    "return_token_strs": FLAG,
}
DETOKENIZE: Fields = {"tokens": st.lists(st.integers(0, 300), max_size=5)}
RERANK: Fields = {
    "query": TEXT,
    "documents": st.lists(TEXT | st.fixed_dictionaries({"text": TEXT}), min_size=1, max_size=3),
    "top_n": st.integers(0, 3),
    "return_documents": FLAG,
}
SCORE: Fields = {"text_1": TEXT | TEXTS, "text_2": TEXT | TEXTS}
EMBEDDINGS: Fields = {
    "input": TEXT | TEXTS,
    "dimensions": st.integers(1, 3),
    "encoding_format": st.sampled_from(["float", "base64"]),
    "user": TEXT,
}
PATHS: Mapping[str, tuple[dict[str, Any], Fields]] = {
    "/tokenize": ({"prompt": "Hi"}, TOKENIZE),
    "/detokenize": ({"tokens": [1]}, DETOKENIZE),
    "/v1/rerank": ({"query": "Hi", "documents": ["a"]}, RERANK),
    "/v1/score": ({"text_1": "a", "text_2": "b"}, SCORE),
    "/v1/embeddings": ({"input": "a"}, EMBEDDINGS),
}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of one application for all examples."""
    async with direct_client() as client:
        yield client


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly good fields, some with any value, and unknown ones."""
    base, fields = PATHS[path]
    unknown = st.dictionaries(st.sampled_from(["x", "truncate"]), VALUES.filter(bool), max_size=1)
    return st.builds(
        lambda good, bad, more: {**base, **good, **bad, **more},
        st.fixed_dictionaries({}, optional=fields),
        st.just({}) | st.dictionaries(st.sampled_from([*fields, "model"]), VALUES, max_size=2),
        unknown,
    )


@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=NUM_CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_no_body_is_a_5xx_and_unknown_fields_are_named(
    client: httpx.AsyncClient, path: str, data: st.DataObject
) -> None:
    """A refusal has a message."""
    body = data.draw(bodies(path))
    response = await client.post(path, content=json.dumps(body).encode())
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]
        return
    assert isinstance(response.json(), dict)
    known = {*PATHS[path][1], "model"}
    named = response.headers.get("x-ignored-fields", "").split(", ")
    assert {name for name in body if name not in known} <= set(named)
