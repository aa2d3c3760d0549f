"""Scores through the real orchestrator: by a cross-encoder, by embeddings, and errors."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.similarity import cosine
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.scoring import MAX_TEXTS
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_embedding import embed, texts
from tests.orchestrator.test_service import generate, request
from tests.orchestrator.tokenizers_made import byte_level

EMBEDDING, SCORE = common_pb2.MODEL_KIND_EMBEDDING, common_pb2.MODEL_KIND_SCORE
BY_COSINE = orchestrator_pb2.SCORE_METHOD_EMBEDDING_SIMILARITY
BY_CROSS_ENCODER = orchestrator_pb2.SCORE_METHOD_CROSS_ENCODER


def engine(kind: common_pb2.ModelKind.ValueType, name: str = "fake") -> FakeInference:
    made = FakeInference()
    made.kind, made.name = kind, name
    return made


async def score(
    running: Orchestrator, first: list[str], second: list[str], **fields: Any
) -> list[orchestrator_pb2.ScoreResponse]:
    """All messages of a stream."""
    asked = orchestrator_pb2.ScoreRequest(first_texts=first, second_texts=second, **fields)
    async with open_stream(running.stub.Score, asked) as responses:
        return [response async for response in responses]


def ids(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False).ids


async def test_a_cross_encoder_reads_both_texts() -> None:
    """One call for each 64 pairs; the fake's score is the first text's share of the tokens."""
    documents = [f"document {'x' * number}" for number in range(70)]
    async with orchestrator(engine(SCORE)) as running:
        responses = await score(running, ["query"], documents, is_search=True)
        assert [len(batch) for batch in running.engine.scored] == [64, 6]
    assert {response.method for response in responses} == {BY_CROSS_ENCODER}
    assert {response.model for response in responses} == {"fake"}
    scores = [value for response in responses for value in response.scores]
    lengths = [len(ids("query")) + len(byte_level().encode(each).ids) for each in documents]
    assert scores == pytest.approx([len(ids("query")) / length for length in lengths])
    assert sum(response.prompt_tokens for response in responses) == sum(lengths)
    assert running.tokenizer.text_requests[0].input_type == common_pb2.INPUT_TYPE_UNSPECIFIED


@pytest.mark.parametrize("kind", [EMBEDDING, common_pb2.MODEL_KIND_UNSPECIFIED])
@pytest.mark.parametrize(
    ("first", "second"), [(["one"], ["two", "three"]), (["one", "four"], ["two", "three"])]
)
async def test_other_models_compare_embeddings(
    kind: common_pb2.ModelKind.ValueType, first: list[str], second: list[str]
) -> None:
    """The cosine of the fake's vectors; queries and documents have their prompts."""
    async with orchestrator(engine(kind)) as running:
        [response] = await score(running, first, second, is_search=True)
    pairs = zip(first * len(second) if len(first) == 1 else first, second, strict=False)
    expected = [cosine(vector(one), vector(other)) for one, other in pairs]
    assert response.method == BY_COSINE
    assert list(response.scores) == pytest.approx(expected)
    uses = [each.input_type for each in running.tokenizer.text_requests]
    assert uses == [common_pb2.INPUT_TYPE_QUERY, common_pb2.INPUT_TYPE_DOCUMENT]


def vector(text: str) -> list[float]:
    """The fake engine's vector of a text."""
    found = ids(text)
    return [float(len(found)), float(sum(found))]


BAD: list[tuple[list[str], list[str], str, str]] = [
    ([], ["a"], "first_texts", "1 to 1000 texts, given 0"),
    (["a"], [], "second_texts", "1 to 1000 texts, given 0"),
    (["a"], ["b"] * (MAX_TEXTS + 1), "second_texts", "given 1001"),
    (["a"], ["b", ""], "second_texts[1]", "must not be empty"),
    (["a", "b"], ["c"], "second_texts", "one text for each of first_texts (2), given 1"),
]


@pytest.mark.parametrize(("first", "second", "param", "words"), BAD)
async def test_bad_pairs_are_refused(
    first: list[str], second: list[str], param: str, words: str
) -> None:
    """Before a permit is taken."""
    async with orchestrator(engine(SCORE)) as running:
        with pytest.raises(MeshError) as caught:
            await score(running, first, second)
    assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, param)
    assert words in caught.value.message


@pytest.mark.parametrize("kind", [SCORE, EMBEDDING])
async def test_long_pairs_are_refused_or_cut(kind: common_pb2.ModelKind.ValueType) -> None:
    """The error names the second text; `truncate` cuts to the context or to `max_tokens`."""
    served = engine(kind)
    served.context_length = 40
    long = "dam " * 100
    async with orchestrator(served) as running:
        with pytest.raises(MeshError, match=r"maximum context length is 40 tokens") as caught:
            await score(running, ["a"], ["b", long])
        assert (caught.value.kind, caught.value.param) == (
            ErrorKind.CONTEXT_TOO_LONG,
            "second_texts[1]",
        )
        with pytest.raises(MeshError, match=r"must have at most 9 tokens, given") as caught:
            await score(running, ["a"], ["b", long], max_tokens=9)
        assert caught.value.param == "second_texts[1]"
        with pytest.raises(MeshError, match="max_tokens must be at most the model's context"):
            await score(running, ["a"], ["b"], max_tokens=41)
        await score(running, ["a"], ["b", long], truncate=True)
        await score(running, ["a"], ["b", long], truncate=True, max_tokens=9)
        batches = served.scored if kind == SCORE else served.embedded
        assert [max(map(len, batch)) for batch in batches] == [40, 9]


async def test_a_lost_engine_s_pairs_are_scored_by_another() -> None:
    """As batches of embeddings."""
    engines = engine(SCORE), engine(SCORE)
    async with orchestrator(*engines) as running:
        engines[0].refusal = MeshError(ErrorKind.UNAVAILABLE, "no")
        for number in range(4):
            [response] = await score(running, ["a"], [f"b{number}"])
            assert len(response.scores) == 1
        assert len(engines[1].scored) == 4


async def test_options_of_embeddings_reach_the_tokenizer() -> None:
    """Prompts and truncation; token ids are cut as well."""
    async with orchestrator(FakeInference(context_length=64)) as running:
        asked = texts("a", prompt_name="query", truncate=True, max_tokens=6)
        asked.input_type = common_pb2.INPUT_TYPE_DOCUMENT
        asked.inputs.add().token_ids.ids.extend([1] * 50)
        [response] = await embed(running, asked)
        [sent] = running.tokenizer.text_requests
    assert (sent.prompt_name, sent.truncate, sent.max_tokens) == ("query", True, 6)
    assert sent.input_type == common_pb2.INPUT_TYPE_DOCUMENT
    assert [each.values[0] for each in response.embeddings] == [1, 6]


async def test_a_tokenizer_of_an_earlier_version_encodes_each_text() -> None:
    """As in a rollout; what it cannot do is refused."""
    async with orchestrator(FakeInference()) as running:
        running.tokenizer.encodes_texts = False
        [response] = await embed(running, texts("one", "three"))
        assert [each.values[0] for each in response.embeddings] == [
            len(ids("one")),
            len(ids("three")),
        ]
        assert running.tokenizer.prompts == ["one", "three"]
        with pytest.raises(MeshError) as caught:
            await embed(running, texts("one", truncate=True))
        assert caught.value.kind is ErrorKind.UNIMPLEMENTED


async def test_each_operation_chooses_a_model_of_its_kind() -> None:
    """Without a name; several of a kind, and a model of another kind, are refused."""
    engines = engine(SCORE, "s"), engine(EMBEDDING, "e"), FakeInference()
    async with orchestrator(*engines) as running:
        [embedded] = await embed(running, texts("a"))
        [scored] = await score(running, ["a"], ["b"])
        generated = await generate(running, request("Hello"))
        listed = await call_unary(running.stub.ListModels, orchestrator_pb2.ListModelsRequest())
        assert (embedded.model, scored.model) == ("e", "s")
        assert generated[0].started.model == "fake"
        assert {each.name: each.kind for each in listed.models} == {
            "e": EMBEDDING,
            "fake": common_pb2.MODEL_KIND_GENERATION,
            "s": SCORE,
        }
        for model, words in (("e", "embedding model, which generates no"), ("s", "cross-encoder")):
            with pytest.raises(MeshError, match=words) as caught:
                await generate(running, request("Hello", model=model))
            assert (caught.value.kind, caught.value.param) == (ErrorKind.INVALID_REQUEST, "model")
        with pytest.raises(MeshError, match="model 's' is a cross-encoder"):
            await embed(running, texts("a", model="s"))
        [by_name] = await embed(running, texts("a", model="fake"))
        assert by_name.model == "fake"


async def test_an_encoder_alone_generates_no_text() -> None:
    """Without a name the request waits for a model that can, or is refused with 503."""
    async with orchestrator(engine(EMBEDDING)) as running:
        with pytest.raises(MeshError, match="no engine that generates text is ready") as caught:
            await generate(running, request("Hello"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await eventually(lambda: running.engine.num_open == 0, "nothing runs")
