"""Encodings of bodies and queries, and the length of error texts."""

from __future__ import annotations

import gzip
import json
from codecs import BOM_UTF8

import pytest

from mesh.errors import MAX_MESSAGE_BYTES
from tests.gateway.direct import direct_client

SEARCH = "/api/v1/search"
BODY = json.dumps({"query": "é"}).encode()


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "GZIP", "x" * 5000])
async def test_a_content_coding_is_415(coding: str) -> None:
    """The message and a header name what is accepted."""
    async with direct_client() as client:
        headers = {"content-encoding": coding}
        response = await client.post(SEARCH, content=gzip.compress(BODY), headers=headers)
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "identity"
    error = response.json()["error"]
    assert error["code"] == "unsupported_media_type"
    assert error["message"].startswith("Content-Encoding must be identity, given ")
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    ("body", "coding"), [(BOM_UTF8 + BODY, ""), (BODY, "identity"), (BODY, "")]
)
async def test_a_byte_order_mark_is_skipped(body: bytes, coding: str) -> None:
    """The coding `identity` is no coding."""
    async with direct_client() as client:
        headers = {"content-encoding": coding} if coding else {}
        response = await client.post(SEARCH, content=body, headers=headers)
    assert response.status_code == 200
    assert response.json()["query"] == "é"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("query=%C3%A9", "é"),
        ("query=a+b%20c&max_tokens=1", "a b c"),
        ("query=%F0%9F%98%80", "\N{GRINNING FACE}"),
        ("query=%ff", None),
        ("query=%C3", None),
        ("query=x&%ff=1", None),
        ("query=%ED%A0%80", None),
    ],
)
async def test_a_query_must_be_utf8(query: str, expected: str | None) -> None:
    """Invalid UTF-8 is a 400; it is not replaced."""
    async with direct_client() as client:
        response = await client.get(f"{SEARCH}?{query}")
    if expected is None:
        assert response.status_code == 400
        message = "the query string must be percent-encoded UTF-8"
        assert response.json()["error"]["message"] == message
    else:
        assert response.json()["query"] == expected


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/json, text/event-stream;q=0.5", "application/json"),
        ("text/event-stream;q=0", "application/json"),
        ("application/json;q=0.5, text/event-stream", "text/event-stream; charset=utf-8"),
    ],
)
async def test_a_stream_is_chosen_by_quality(accept: str, content_type: str) -> None:
    """The preferred type of `Accept` decides."""
    async with direct_client() as client:
        response = await client.get(f"{SEARCH}?query=x", headers={"accept": accept})
    assert response.headers["content-type"] == content_type


async def test_error_texts_are_bounded() -> None:
    """A long path, field name or value is not sent back as a whole."""
    long = "x" * 30_000
    async with direct_client() as client:
        answers = [
            await client.get(f"/{long}"),
            await client.post(f"/v1/models/{long}"),
            await client.get(f"/v1/models/{long}"),
            await client.post("/v1/completions", json={"prompt": "x", "logit_bias": {long: "y"}}),
            await client.post("/v1/completions", json={"prompt": "x", "model": [long]}),
            await client.get(f"{SEARCH}?{long}=1&query=x&num_results={long}"),
        ]
    for answer in answers:
        assert 400 <= answer.status_code < 500
        assert len(answer.json()["error"]["message"]) <= MAX_MESSAGE_BYTES
        assert len(answer.content) < 2 * MAX_MESSAGE_BYTES
        assert sum(len(name) + len(value) for name, value in answer.headers.items()) < 4000
