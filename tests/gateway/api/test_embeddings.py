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
from mesh.v1 import common_pb2, orchestrator_pb2
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


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_the_official_client_shortens_vectors(
    official: openai.AsyncOpenAI, encoding: str | None
) -> None:
    """To `dimensions` values of length 1, in both encodings."""
    for dimensions, first in ((1, (1.0,)), (2, (3.0, 0.1))):
        asked: Any = {"model": "fake", "input": ["abc", "de"], "dimensions": dimensions}
        if encoding is not None:
            asked["encoding_format"] = encoding
        answer = await official.embeddings.create(**asked)
        vector: Any = answer.data[0].embedding
        if encoding == "base64":  # the client decodes it only if it was not asked for
            vector = struct.unpack(f"<{dimensions}f", base64.b64decode(vector))
        assert list(vector) == pytest.approx(first)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"truncate_prompt_tokens": -1}, {"truncate": True}),
        ({"truncate_prompt_tokens": 9}, {"truncate": True, "max_tokens": 9}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"input_type": "search_query"}, {"input_type": common_pb2.INPUT_TYPE_QUERY}),
        ({"input_type": "passage"}, {"input_type": common_pb2.INPUT_TYPE_DOCUMENT}),
    ],
)
async def test_options_of_encoders(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    given: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    """Truncation and prompts reach the orchestrator."""
    response = await client.post(PATH, json={"input": "a", **given})
    assert response.status_code == 200
    assert "x-ignored-fields" not in response.headers
    [request] = orchestrator.requests
    assert request == orchestrator_pb2.EmbedRequest(inputs=[{"text": "a"}], **expected)  # type: ignore[list-item]


def test_a_shortened_vector_has_length_1() -> None:
    """A vector of zeros stays one; a whole vector is not changed."""
    assert embeddings.shortened([3.0, 4.0, 9.0], 2) == [0.6, 0.8]
    assert embeddings.shortened([0.0, 0.0, 9.0], 2) == [0.0, 0.0]
    assert embeddings.shortened([3.0, 4.0], 2) == embeddings.shortened([3.0, 4.0], None)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "input is required"),
    ({"input": ""}, "input must have at least 1 character, given 0"),
    ({"input": []}, "input must have at least 1 token id, given 0"),
    ({"input": ["a", ""]}, "input[1] must have at least 1 character, given 0"),
    ({"input": ["a"] * 2049}, "input must have at most 2048 prompts, given 2049"),
    ({"input": [-1]}, "input[0] must be a token id from 0"),
    ({"input": "a", "dimensions": 64}, "dimensions must be at most 2, given 64"),
    ({"input": "a", "dimensions": 0}, "dimensions must be at least 1, given 0"),
    (
        {"input": "a", "truncate_prompt_tokens": 0},
        "truncate_prompt_tokens must be -1 or",
    ),
    ({"input": "a", "input_type": "poem"}, "input_type must be 'query', 'search_query'"),
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
