"""`/v1/embeddings` with OpenAI's Python client and with plain HTTP."""

from __future__ import annotations

import base64
import struct
import threading
from typing import Any

import httpx
import openai
import pytest

from gateway.api import embeddings
from gateway.validation import body as body_module
from mesh.errors import ErrorKind, MeshError
from tests.gateway.api.test_openai import official as official  # a fixture
from tests.gateway.fakes import FakeOrchestrator, Script

PATH = "/v1/embeddings"


async def test_the_official_client_reads_vectors(official: openai.AsyncOpenAI) -> None:
    """The client requests base64 by default; vectors are in the order of the inputs."""
    answer = await official.embeddings.create(model="fake", input=["a", "bc", "def"])
    assert answer.model == "fake"
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert [each.embedding for each in answer.data] == [
        pytest.approx([size, size - 1 + 0.1]) for size in (1, 2, 3)
    ]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (6, 6)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("abc", [3]), (["a", "bc"], [1, 2]), ([5, 6, 7], [3]), ([[1], [2, 3]], [1, 2])],
)
async def test_input_is_text_or_token_ids(
    client: httpx.AsyncClient, given: Any, sizes: list[int]
) -> None:
    """One input or several; base64 encodes the same floats as the JSON arrays."""
    plain = (await client.post(PATH, json={"input": given})).json()
    packed = (await client.post(PATH, json={"input": given, "encoding_format": "base64"})).json()
    vectors = [each["embedding"] for each in plain["data"]]
    assert [vector[0] for vector in vectors] == sizes
    assert vectors == [
        list(struct.unpack("<2f", base64.b64decode(each["embedding"]))) for each in packed["data"]
    ]


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_large_batches_are_encoded_in_a_thread(
    client: httpx.AsyncClient, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones are not; the response is the same."""
    threads: set[int] = set()
    encode = embeddings._encode

    def record(*arguments: Any) -> str:
        threads.add(threading.get_ident())
        return encode(*arguments)

    monkeypatch.setattr(embeddings, "_encode", record)
    body = {"input": ["a", "bc", "def"], "encoding_format": encoding}
    small = (await client.post(PATH, json=body)).json()
    assert threads == {threading.get_ident()}
    threads.clear()
    monkeypatch.setattr(body_module, "LARGE_BODY_BYTES", 1)
    assert (await client.post(PATH, json=body)).json() == small
    assert threads
    assert threading.get_ident() not in threads


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input is required"),
    ({"input": ""}, "input must have at least 1 character, given 0"),
    ({"input": []}, "input must have at least 1 token id, given 0"),
    ({"input": ["a", ""]}, "input[1] must have at least 1 character, given 0"),
    ({"input": ["a"] * 2049}, "input must have at most 2048 prompts, given 2049"),
    ({"input": [-1]}, "input[0] must be a token id from 0"),
    ({"input": "a", "dimensions": 64}, "dimensions must be null, given 64"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format must be 'float' or 'base64'"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
async def test_bad_input(client: httpx.AsyncClient, body: dict[str, Any], message: str) -> None:
    """The error message names the field, its limit and the given value."""
    response = await client.post(PATH, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_upstream_error_has_its_status(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """OVERLOADED is a 429 with Retry-After."""
    orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full"))
    response = await client.post(PATH, json={"input": "a"})
    assert response.status_code == 429
    assert "retry-after" in response.headers
