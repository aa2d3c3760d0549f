"""`/v1/rerank` and `/v1/score`: the comparisons, the responses and the names in errors."""

from __future__ import annotations

import math
from typing import Any

import httpx
import pytest

from gateway.api import similarity
from gateway.schemas.similarity import RerankRequest, ScoreRequest
from gateway.upstream import client as client_module
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.v1 import orchestrator_pb2
from tests.gateway.conftest import StartGateway, client_of
from tests.gateway.fakes import FakeOrchestrator, Script

CROSS_ENCODER = orchestrator_pb2.SCORE_METHOD_CROSS_ENCODER


@pytest.mark.parametrize("path", similarity.RERANK_ROUTES)
async def test_documents_are_ranked_by_their_scores(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, path: str
) -> None:
    """Best first, equal ones in the order of the request; the orchestrator gets all at once."""
    scores = {"west": -1.0, "northeast": 0.75, "nowhere": 0.0, "north": 0.0, "east": 1.0}
    orchestrator.script = Script(scores=scores)
    documents = ["west", {"text": "northeast"}, "nowhere", "north", "east"]
    answer = (await client.post(path, json={"query": "east", "documents": documents})).json()
    assert answer.pop("id").startswith("rerank-")
    num_tokens = len("eastwestnortheastnorthnowhere")
    assert answer == {
        "model": "fake",
        "method": "embedding_similarity",
        "results": [
            {"index": 4, "relevance_score": 1.0, "document": {"text": "east"}},
            {"index": 1, "relevance_score": 0.75, "document": {"text": "northeast"}},
            {"index": 2, "relevance_score": 0.0, "document": {"text": "nowhere"}},
            {"index": 3, "relevance_score": 0.0, "document": {"text": "north"}},
            {"index": 0, "relevance_score": -1.0, "document": {"text": "west"}},
        ],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    [request] = orchestrator.requests
    assert isinstance(request, orchestrator_pb2.ScoreRequest)
    assert list(request.first_texts) == ["east"]
    assert list(request.second_texts) == ["west", "northeast", "nowhere", "north", "east"]
    assert request.is_search
    assert not request.truncate


@pytest.mark.parametrize(
    ("given", "max_tokens", "truncate"), [(-1, 0, True), (7, 7, True), (None, 0, False)]
)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/rerank", {"query": "east", "documents": ["west"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ],
)
async def test_long_texts_are_cut_on_request(
    client: httpx.AsyncClient,
    orchestrator: FakeOrchestrator,
    path: str,
    body: dict[str, Any],
    given: int | None,
    max_tokens: int,
    truncate: bool,
) -> None:
    """truncate_prompt_tokens: -1 is the model's context; without it, long texts are refused."""
    asked = body if given is None else {**body, "truncate_prompt_tokens": given}
    assert (await client.post(path, json=asked)).status_code == 200
    [request] = orchestrator.requests
    assert isinstance(request, orchestrator_pb2.ScoreRequest)
    assert (request.max_tokens, request.truncate) == (max_tokens, truncate)


async def test_the_method_of_a_cross_encoder(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """Both endpoints say how the scores are made."""
    orchestrator.script = Script(score_method=CROSS_ENCODER)
    for path, body in (("/rerank", GOOD), ("/score", PAIRS)):
        assert (await client.post(path, json=body)).json()["method"] == "cross_encoder"


@pytest.mark.parametrize(("top_n", "indexes"), [(1, [1]), (2, [1, 0]), (9, [1, 0]), (0, [1, 0])])
async def test_the_first_results_without_documents(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, top_n: int, indexes: list[int]
) -> None:
    """A top_n of 0, vLLM's default, means all."""
    orchestrator.script = Script(scores={"east": 1.0})
    asked = {"query": "east", "documents": ["north", "east"], "return_documents": False}
    answer = (await client.post("/rerank", json={**asked, "top_n": top_n})).json()
    assert [result["index"] for result in answer["results"]] == indexes
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])


@pytest.mark.parametrize("path", similarity.SCORE_ROUTES)
@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "b"), (["a"], "b"), ("a", ["b", "c", "d"]), (["a", "b", "c"], ["d", "e", "f"])],
)
async def test_pairs_are_scored(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator, path: str, first: Any, second: Any
) -> None:
    """One text with one, one with several, several with as many."""
    texts = second if isinstance(second, list) else [second]
    orchestrator.script = Script(scores={text: number / 4 for number, text in enumerate(texts)})
    answer = (await client.post(path, json={"text_1": first, "text_2": second})).json()
    assert answer["data"] == [
        {"object": "score", "index": index, "score": index / 4} for index in range(len(texts))
    ]
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert answer["method"] == "embedding_similarity"
    assert answer["usage"]["total_tokens"] == len(texts)
    [request] = orchestrator.requests
    assert isinstance(request, orchestrator_pb2.ScoreRequest)
    assert list(request.first_texts) == (first if isinstance(first, list) else [first])
    assert list(request.second_texts) == texts
    assert not request.is_search


def fake_cosine(one: tuple[str, int], other: tuple[str, int]) -> float:
    """Of the fake's vectors: the length of a text and its number."""
    left, right = [(len(text), number + 0.1) for text, number in (one, other)]
    return (left[0] * right[0] + left[1] * right[1]) / (math.hypot(*left) * math.hypot(*right))


async def test_an_orchestrator_without_scores_embeds(
    client: httpx.AsyncClient, orchestrator: FakeOrchestrator
) -> None:
    """During a rollout the gateway may be newer: it compares the embeddings itself."""
    orchestrator.script = Script(without_score=True)
    body: dict[str, Any] = {"query": "east", "documents": ["a", "northeast"], "top_n": 1}
    ranked = (await client.post("/rerank", json=body)).json()
    assert ranked["method"] == "embedding_similarity"
    assert ranked["usage"]["total_tokens"] == len("eastanortheast")
    [best] = ranked["results"]
    assert best["index"] == 1
    expected = fake_cosine(("east", 0), ("northeast", 2))
    assert best["relevance_score"] == pytest.approx(expected, abs=1e-6)
    pairs = {"text_1": ["aa", "b"], "text_2": ["ccc", "dd"]}
    data = (await client.post("/score", json=pairs)).json()["data"]
    expected_scores = [fake_cosine(("aa", 0), ("ccc", 1)), fake_cosine(("b", 2), ("dd", 3))]
    assert [each["score"] for each in data] == pytest.approx(expected_scores, abs=1e-6)
    embedded = orchestrator.requests[-1]
    assert isinstance(embedded, orchestrator_pb2.EmbedRequest)
    assert [each.text for each in embedded.inputs] == ["aa", "ccc", "b", "dd"]


@pytest.mark.parametrize(
    ("path", "body", "field", "public"),
    [
        ("/rerank", {"query": "a", "documents": ["b", "c"]}, "input[0]", "query"),
        ("/rerank", {"query": "a", "documents": ["b", "c"]}, "input[2]", "documents[1]"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d"]}, "input[3]", "text_2[1]"),
        ("/score", {"text_1": "a", "text_2": "b"}, "input[1]", "text_2"),
    ],
)
def test_fields_of_embedded_texts_have_the_clients_names(
    path: str, body: dict[str, Any], field: str, public: str
) -> None:
    """Also where an orchestrator only embeds."""
    request = (RerankRequest if path == "/rerank" else ScoreRequest).model_validate(body)
    pairs = request.pairs()
    names = client_module._texts_of(pairs, len(pairs.first) == 1).names
    assert names.public(invalid(field, f"{field} is too long")).param == public


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
    (
        "/rerank",
        {**GOOD, "truncate_prompt_tokens": 0},
        "truncate_prompt_tokens must be -1 or at least 1, given 0",
    ),
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
        ("/rerank", GOOD, "first_texts[0]", "query"),
        ("/rerank", GOOD, "second_texts[0]", "documents[0]"),
        ("/rerank", GOOD, "input", "documents"),
        ("/rerank", GOOD, "max_tokens", "truncate_prompt_tokens"),
        ("/score", PAIRS, "first_texts[1]", "text_1[1]"),
        ("/score", PAIRS, "second_texts[1]", "text_2[1]"),
        ("/score", PAIRS, "max_tokens", "truncate_prompt_tokens"),
        ("/score", {"text_1": ["a"], "text_2": "b"}, "first_texts[0]", "text_1[0]"),
        ("/score", {"text_1": "a", "text_2": "b"}, "first_texts[0]", "text_1"),
        ("/score", {"text_1": "a", "text_2": "b"}, "second_texts[0]", "text_2"),
        ("/score", {"text_1": "a", "text_2": ["b", "c"]}, "second_texts[1]", "text_2[1]"),
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
