"""Tokenizers and engines that differ are not mixed: vocabulary, weights, settings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.hub.vocabulary import vocabulary_sha256
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import orchestrator_pb2
from orchestrator.clients.tokenizer import SHORT_CHARACTERS
from orchestrator.generation import ModelInfo
from orchestrator.observability import metrics
from orchestrator.routing.agreement import Agreement, can_replace
from tests.helpers import eventually
from tests.orchestrator.fakes import FILE, SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_embedding import embed, texts
from tests.orchestrator.test_readiness import reported
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(30)

VOCABULARY = vocabulary_sha256(FILE)
OLD = ModelInfo("m", 100, frozenset(), VOCABULARY, "a" * 64)
NEW = OLD._replace(model_sha256="b" * 64)


def engine(model_sha256: str, vocabulary: str = VOCABULARY, text: str = SCRIPT) -> FakeInference:
    """A fake engine that reports these digests."""
    made = FakeInference(text)
    made.model_sha256, made.vocabulary_sha256 = model_sha256, vocabulary
    return made


def other_ids() -> dict[str, bytes]:
    """The small tokenizer's files with the ids of two tokens swapped."""
    content = json.loads(FILE)
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    return {"tokenizer.json": json.dumps(content).encode()}


def chosen(agreement: Agreement, models: Sequence[ModelInfo]) -> ModelInfo | None:
    return agreement.choose(models).get("m")


def test_a_rollout_changes_over_when_half_of_the_replicas_are_new() -> None:
    """Most replicas decide; of equal numbers the previous choice stays."""
    agreement = Agreement(lambda _: VOCABULARY)
    states = [(3, 0), (3, 1), (2, 1), (2, 2), (1, 2), (1, 3), (0, 3)]
    found = [chosen(agreement, [OLD] * old + [NEW] * new) for old, new in states]
    assert found == [OLD, OLD, OLD, OLD, NEW, NEW, NEW]


def test_the_choice_is_computed_for_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request asks for it: of the replicas, or of their tokenizer's vocabulary."""
    compared: list[ModelInfo] = []

    def compare(model: ModelInfo, other: ModelInfo) -> bool:
        compared.append(other)
        return can_replace(model, other)

    monkeypatch.setattr("orchestrator.routing.agreement.can_replace", compare)
    vocabulary = [VOCABULARY]
    agreement = Agreement(lambda _: vocabulary[0])
    assert chosen(agreement, [OLD, NEW]) is not None
    compared.clear()
    for _ in range(3):
        assert chosen(agreement, [OLD, NEW]) is not None
    assert compared == []
    assert chosen(agreement, [NEW]) == NEW
    vocabulary[0] = "other"
    assert chosen(agreement, [NEW]) is None


def test_only_replicas_with_the_tokenizers_vocabulary_are_chosen() -> None:
    """However many there are; an unknown vocabulary is trusted."""
    other = OLD._replace(vocabulary_sha256="c" * 64)
    assert chosen(Agreement(lambda _: VOCABULARY), [other, other, NEW]) == NEW
    assert chosen(Agreement(lambda _: VOCABULARY), [other]) is None
    assert chosen(Agreement(lambda _: ""), [other]) == other
    unknown = ModelInfo("m", 100)
    assert chosen(Agreement(lambda _: VOCABULARY), [unknown]) == unknown


def test_an_engine_of_an_earlier_version_can_take_over() -> None:
    """It does not report the length of its embeddings."""
    agreement = Agreement(lambda _: VOCABULARY)
    newer = OLD._replace(embedding_length=384)
    assert can_replace(OLD, newer)
    assert can_replace(newer, OLD)
    assert not agreement.refused({"old": OLD, "new": newer})
    assert not can_replace(NEW, newer)


async def problems(running: Orchestrator) -> list[str]:
    """What ListModels reports."""
    response = await call_unary(running.stub.ListModels, orchestrator_pb2.ListModelsRequest())
    return list(response.problems)


async def test_an_engine_with_another_vocabulary_is_not_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readiness, the log, the metric and the refusal say so; no text is produced."""
    wrong = engine("a", "c" * 64)
    async with orchestrator(wrong) as running, reported(running) as states:
        await eventually(lambda: "replica refused" in caplog.text, "the log says so")
        await eventually(lambda: bool(states), "a state is reported")
        assert not any(states)
        [problem] = await problems(running)
        assert re.search(
            r"'fake' has another vocabulary \(cccccccccccc\) than .*tokenizer", problem
        )
        assert metrics.REPLICAS_REFUSED._value.get() == 1
        assert metrics.REPLICAS._value.get() == 0
        with pytest.raises(MeshError, match=r"no engine is ready: .* another vocabulary") as caught:
            await generate(running, request())
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert wrong.requests == []


async def test_a_tokenizer_restarted_with_other_ids_gets_no_answer(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before the orchestrator knows of the restart nor after it."""
    monkeypatch.setattr("orchestrator.readiness.RECHECK_SECONDS", 0.05)
    async with orchestrator(engine("a")) as running, reported(running) as states:
        await eventually(lambda: states[-1:] == [True], "ready")
        assert text_of(await generate(running, request())) == SCRIPT
        valid = running.tokenizer.files
        running.tokenizer.serve_files(other_ids())
        # A short prompt is encoded here, with the ids of the engine.
        assert text_of(await generate(running, request())) == SCRIPT
        with pytest.raises(MeshError, match="have different vocabularies") as caught:
            await generate(running, request("long" * SHORT_CHARACTERS))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert caught.value.retry_after is not None
        await eventually(lambda: "replica refused" in caplog.text, "the log says so")
        await eventually(lambda: not states[-1], "not ready")
        running.tokenizer.serve_files(valid)
        await eventually(lambda: states[-1], "ready with the ids of the engine")
        assert text_of(await generate(running, request())) == SCRIPT
    assert len(running.engine.requests) == 3


async def test_replicas_with_other_weights_get_no_requests() -> None:
    """Two equal replicas serve, the third one is refused, whatever a prompt prefers."""
    engines = [engine("a"), engine("b", text="garbage"), engine("a")]
    async with orchestrator(*engines) as running:
        texts = {text_of(await generate(running, request(f"Hello {n}"))) for n in range(12)}
        [problem] = await problems(running)
    assert texts == {SCRIPT}
    assert engines[1].requests == []
    assert re.search(r"other weights or settings \(b, context 2048\) than .*\(a, ", problem)


async def test_a_stream_fails_over_among_equals_only() -> None:
    """Without another equal replica the stream ends with an error, not with another model."""
    engines = [engine("a"), engine("a"), engine("b", text="garbage" * 20)]
    engines[0].fail_after = engines[1].fail_after = 3
    engines[0].delay = engines[1].delay = 0.01
    async with orchestrator(*engines) as running:
        async with open_stream(running.stub.Generate, request()) as responses:
            events = [await anext(responses), await anext(responses)]
            [other] = [each for each in engines[:2] if not each.requests]
            other.fail_after = None
            events += [event async for event in responses]
        assert text_of(events) == SCRIPT
        await eventually(lambda: len(running.service._replicas.ready) == 3, "it is back")
        other.fail_after = 3
        with pytest.raises(MeshError):
            await generate(running, request("Bye"))
    assert engines[2].requests == []


async def test_a_replica_restarted_with_other_weights_answers_nothing() -> None:
    """The engine refuses a prompt for its predecessor; then its new model is known."""
    async with orchestrator(engine("a")) as running:
        assert text_of(await generate(running, request())) == SCRIPT
        # As if another process had taken over the address, unnoticed by the health watch.
        running.engine.model_sha256 = "b"
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await eventually(lambda: len(running.service._replicas.ready) == 1, "it is back")
        assert text_of(await generate(running, request())) == SCRIPT
    assert [each.model_sha256 for each in running.engine.requests] == ["a", "a", "b"]


async def test_an_echo_is_of_the_engines_vocabulary() -> None:
    """The text of a prompt of ids comes from the tokenizer, which may have other ids."""
    asked = orchestrator_pb2.GenerateRequest(token_ids={"ids": [1, 2, 3]}, echo=True)
    async with orchestrator(engine("a")) as running:
        assert text_of(await generate(running, asked)).endswith(SCRIPT)
        running.tokenizer.serve_files(other_ids())
        with pytest.raises(MeshError, match="have different vocabularies"):
            await generate(running, asked)
    assert len(running.engine.requests) == 1


async def test_embeddings_are_of_one_model_and_its_vocabulary() -> None:
    """Neither other ids nor a replica with other weights: its vectors are not comparable."""
    engines = [engine("a"), engine("a"), engine("b")]
    async with orchestrator(*engines) as running:
        for number in range(8):
            await embed(running, texts(f"fox {number}"))
        assert engines[2].embedded == []
        engines[0].model_sha256 = engines[1].model_sha256 = "c"
        with pytest.raises(MeshError) as caught:
            await embed(running, texts("fox"))
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        running.tokenizer.serve_files(other_ids())
        with pytest.raises(MeshError, match=r"different vocabularies|another vocabulary"):
            await embed(running, texts("fox"))
    assert sum(len(each.embedded) for each in engines) == 8
