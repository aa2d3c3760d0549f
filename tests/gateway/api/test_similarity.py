"""`/v1/rerank` and `/v1/score`: the comparisons, the responses and the names in errors."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.api import similarity
from gateway.validation import body as body_module
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script

VECTORS = {
    "east": (2.0, 0.0),
    "north": (0.0, 1.0),
    "northeast": (1.0, 1.0),
    "west": (-3.0, 0.0),
    "nowhere": (0.0, 0.0),
}
DIAGONAL = pytest.approx(math.sqrt(0.5))


class Compass(FakeOrchestrator):
    """Embeds directions, two vectors a message; a text costs one token a character."""

    async def Embed(self, request, context) -> AsyncIterator[object]:  # type: ignore[no-untyped-def, override]
        self._record(request)
        if self.script.refusal is not None:
            raise self.script.refusal
        texts = [each.text for each in request.inputs]
        for begin in range(0, len(texts), 2):
            some = texts[begin : begin + 2]
            yield orchestrator_pb2.EmbedResponse(
                model="fake",
                embeddings=[common_pb2.Embedding(values=VECTORS[text]) for text in some],
                prompt_tokens=sum(map(len, some)),
            )


@pytest.fixture
def orchestrator() -> FakeOrchestrator:
    return Compass()


@pytest.mark.parametrize("path", similarity.RERANK_ROUTES)
async def test_documents_are_ranked_by_cosine(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, path: str
) -> None:
    """Best first, equal ones in the order of the request; one call embeds all texts."""
    documents = ["west", {"text": "northeast"}, "nowhere", "north", "east"]
    answer = (await client.post(path, json={"query": "east", "documents": documents})).json()
    assert answer.pop("id").startswith("rerank-")
    num_tokens = len("easteastwestnortheastnorthnowhere")
    assert answer == {
        "model": "fake",
        "method": "embedding_similarity",
        "results": [
            {"index": 4, "relevance_score": 1.0, "document": {"text": "east"}},
            {"index": 1, "relevance_score": DIAGONAL, "document": {"text": "northeast"}},
            {"index": 2, "relevance_score": 0.0, "document": {"text": "nowhere"}},
            {"index": 3, "relevance_score": 0.0, "document": {"text": "north"}},
            {"index": 0, "relevance_score": -1.0, "document": {"text": "west"}},
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    [request] = orchestrator.requests
    texts = [each.text for each in request.inputs]  # type: ignore[attr-defined]
    assert texts == ["east", "west", "northeast", "nowhere", "north", "east"]


@pytest.mark.parametrize(("top_n", "indexes"), [(1, [1]), (2, [1, 0]), (9, [1, 0]), (0, [1, 0])])
async def test_the_first_results_without_documents(
    client: httpx.AsyncClient, top_n: int, indexes: list[int]
) -> None:
    """A top_n of 0, vLLM's default, means all."""
    asked = {"query": "east", "documents": ["north", "east"], "return_documents": False}
    answer = (await client.post("/rerank", json={**asked, "top_n": top_n})).json()
    assert [result["index"] for result in answer["results"]] == indexes
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])


@pytest.mark.parametrize("path", similarity.SCORE_ROUTES)
@pytest.mark.parametrize(
    ("first", "second", "scores", "texts"),
    [
        ("east", "west", [-1.0], ["east", "west"]),
        (["east"], "east", [1.0], ["east", "east"]),
        ("east", ["north", "northeast"], [0.0, DIAGONAL], ["east", "north", "northeast"]),
        (
            ["east", "north", "west"],
            ["east", "northeast", "nowhere"],
            [1.0, DIAGONAL, 0.0],
            ["east", "east", "north", "northeast", "west", "nowhere"],
        ),
    ],
)
async def test_pairs_are_scored(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    first: Any,
    second: Any,
    scores: list[float],
    texts: list[str],
) -> None:
    """One text with one, one with several, several with as many."""
    answer = (await client.post(path, json={"text_1": first, "text_2": second})).json()
    assert answer["data"] == [
        {"object": "score", "index": index, "score": score} for index, score in enumerate(scores)
    ]
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert answer["method"] == "embedding_similarity"
    assert answer["usage"]["total_tokens"] == sum(map(len, texts))
    [request] = orchestrator.requests
    assert [each.text for each in request.inputs] == texts  # type: ignore[attr-defined]


async def test_large_batches_are_compared_in_a_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The response is the same."""
    threads: set[int] = set()
    compare = similarity.cosine

    def record(*arguments: Any) -> float:
        threads.add(threading.get_ident())
        return compare(*arguments)

    monkeypatch.setattr(similarity, "cosine", record)
    body = {"text_1": "east", "text_2": ["north", "west"]}
    small = (await client.post("/score", json=body)).json()
    assert threads == {threading.get_ident()}
    threads.clear()
    monkeypatch.setattr(body_module, "LARGE_BODY_BYTES", 1)
    assert (await client.post("/score", json=body)).json()["data"] == small["data"]
    assert threads
    assert threading.get_ident() not in threads


MANY = ["east"] * 1001
GOOD = {"query": "east", "documents": ["west"]}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("/rerank", {"documents": ["a"]}, "query is required"),
    ("/rerank", {"query": "a"}, "documents is required"),
    ("/rerank", {**GOOD, "query": ""}, "query must have at least 1 character, given 0"),
    ("/rerank", {**GOOD, "documents": []}, "documents must have at least 1 item, given 0"),
    ("/rerank", {**GOOD, "documents": MANY}, "documents must have at most 1000 items, given 1001"),
    (
        "/rerank",
        {**GOOD, "documents": ["a", ""]},
        "documents[1] must have at least 1 character, given 0",
    ),
    (
        "/rerank",
        {**GOOD, "documents": [5]},
        "documents[0] must be a string or an object with text, given 5",
    ),
    ("/rerank", {**GOOD, "documents": [{"title": "a"}]}, "documents[0].text is required"),
    ("/rerank", {**GOOD, "top_n": -1}, "top_n must be at least 0, given -1"),
    ("/score", {"text_1": "a"}, "text_2 is required"),
    (
        "/score",
        {"text_1": "a", "text_2": 5},
        "text_2 must be a string or an array of strings, given 5",
    ),
    ("/score", {"text_1": ["a", 5], "text_2": "a"}, "text_1[1] must be a string, given 5"),
    ("/score", {"text_1": [], "text_2": "a"}, "text_1 must have at least 1 item, given 0"),
    ("/score", {"text_1": "", "text_2": "a"}, "text_1 must have at least 1 character, given 0"),
    (
        "/score",
        {"text_1": ["a", "b"], "text_2": ["a"]},
        "text_2 must have one item for each of text_1 (2), given 1",
    ),
    ("/score", {"text_1": "a", "text_2": MANY}, "text_2 must have at most 1000 items, given 1001"),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD)
async def test_bad_input(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], message: str
) -> None:
    """400: the message and `param` name the field."""
    response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["message"]) == (400, message)
    assert error["param"] == message.split(" ")[0]


PAIRS = {"text_1": ["a", "b"], "text_2": ["c", "d"]}


@pytest.mark.parametrize(
    ("path", "body", "param", "public"),
    [
        ("/rerank", GOOD, "input[0]", "query"),
        ("/rerank", GOOD, "input[1]", "documents[0]"),
        ("/rerank", GOOD, "input", "documents"),
        ("/score", PAIRS, "input[2]", "text_1[1]"),
        ("/score", PAIRS, "input[3]", "text_2[1]"),
        ("/score", {"text_1": ["a"], "text_2": "b"}, "input[0]", "text_1[0]"),
        ("/score", {"text_1": "a", "text_2": "b"}, "input[0]", "text_1"),
        ("/score", {"text_1": "a", "text_2": "b"}, "input[1]", "text_2"),
        ("/score", {"text_1": "a", "text_2": ["b", "c"]}, "input[2]", "text_2[1]"),
    ],
)
async def test_an_upstream_error_names_the_bodys_field(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    param: str,
    public: str,
) -> None:
    """As with a document that is longer than the context."""
    orchestrator.script = Script(refusal=invalid(param, f"{param} must be shorter"))
    error = (await client.post(path, json=body)).json()["error"]
    assert (error["param"], error["message"]) == (public, f"{public} must be shorter")


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        (
            "/v1/rerank",
            {"query": "east", "documents": [{"text": "west", "title": "W"}], "max_chunks": 3},
            "documents[0].title, max_chunks",
        ),
        ("/v1/score", {"text_1": "east", "text_2": "west", "truncate": True}, "truncate"),
    ],
)
async def test_the_other_rules_of_the_api(
    start_gateway: StartGateway,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    ignored: str,
) -> None:
    """A key is required, unknown fields are named, OVERLOADED is a 429."""
    async with start_gateway(api_keys="secret") as server, client_of(server) as client:
        refused = await client.post(path, json=body)
        client.headers["authorization"] = "Bearer secret"
        good = await client.post(path, json=body)
        orchestrator.script = Script(refusal=MeshError(ErrorKind.OVERLOADED, "full"))
        full = await client.post(path, json=body)
    assert refused.status_code == 401
    assert good.status_code == 200
    assert good.headers["x-ignored-fields"] == ignored
    assert full.status_code == 429
    assert "retry-after" in full.headers
