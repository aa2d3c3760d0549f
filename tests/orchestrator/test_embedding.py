"""Embeddings through the real orchestrator, between a fake tokenizer and fake engines."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from mesh.v1 import orchestrator_pb2
from orchestrator.embedding import BATCH_INPUTS, BATCH_TOKENS, MAX_INPUTS, MAX_TOKENS
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request
from tests.orchestrator.tokenizers_made import byte_level


def texts(*inputs: str, **fields: Any) -> orchestrator_pb2.EmbedRequest:
    """A request to embed these texts."""
    return orchestrator_pb2.EmbedRequest(inputs=[{"text": each} for each in inputs], **fields)  # type: ignore[misc]


def ids(*lengths: int) -> orchestrator_pb2.EmbedRequest:
    """A request to embed inputs of these numbers of token ids."""
    asked = orchestrator_pb2.EmbedRequest()
    for length in lengths:
        asked.inputs.add().token_ids.ids.extend([1] * length)
    return asked


async def embed(
    running: Orchestrator, asked: orchestrator_pb2.EmbedRequest
) -> list[orchestrator_pb2.EmbedResponse]:
    """All messages of a stream."""
    async with open_stream(running.stub.Embed, asked) as responses:
        return [response async for response in responses]


async def test_vectors_have_the_order_of_the_inputs() -> None:
    """Each message has one batch and its token count."""
    asked = texts(*(f"fox {'x' * number}" for number in range(BATCH_INPUTS)))
    asked.inputs.add().token_ids.ids.extend([1, 2, 3])
    lengths = [len(byte_level().encode(each.text).ids) for each in asked.inputs][:-1]
    async with orchestrator(FakeInference()) as running:
        first, last = await embed(running, asked)
    assert [each.values[0] for each in first.embeddings] == lengths
    assert first.prompt_tokens == sum(lengths)
    assert [list(each.values) for each in last.embeddings] == [[3, 6]]
    assert last.prompt_tokens == 3
    assert first.model == "fake"
    assert [len(batch) for batch in running.engine.embedded] == [BATCH_INPUTS, 1]


async def test_a_failed_batch_is_retried_on_another_replica() -> None:
    """One retry; invalid requests are not retried."""
    engines = FakeInference(), FakeInference()
    async with orchestrator(*engines) as running:
        for error in (ErrorKind.UNAVAILABLE, ErrorKind.OVERLOADED):
            engines[0].refusal = MeshError(error, "no")
            for text in ("a", "b", "c", "d"):
                await embed(running, texts(text))
        assert len(engines[1].embedded) == 8
        engines[1].refusal = MeshError(ErrorKind.OVERLOADED, "full")
        with pytest.raises(MeshError) as caught:
            await embed(running, texts("a"))
    assert caught.value.kind in (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE)


FAILED = MeshError(ErrorKind.INTERNAL, "the embedding failed: RuntimeError")


async def test_inputs_that_fail_at_two_engines_alike_are_refused() -> None:
    """With 400, as a generation is. No engine is blamed or loses a request."""
    engines = [FakeInference(), FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        replicas = running.service._replicas
        for engine in engines:
            engine.refusal = FAILED
        for number in range(12):
            with pytest.raises(MeshError, match="fails at every engine: the embedding") as caught:
                await embed(running, texts(f"Hello {number}"))
            assert caught.value.kind is ErrorKind.INVALID_REQUEST
            assert caught.value.retry_after is None
            assert len(replicas.ready) == 3, "a replica was marked lost"
        assert not any(replica.circuit.is_open for replica in replicas.ready)
        for engine in engines:
            engine.refusal = None
        assert len(await embed(running, texts("Hello"))) == 1


async def test_a_failure_that_only_one_engine_has_is_that_engine_s() -> None:
    """The other one computes the vectors; repeated, this opens the circuit of the first."""
    engines = [FakeInference(), FakeInference()]
    engines[0].refusal = FAILED
    async with orchestrator(*engines) as running:
        replicas = running.service._replicas
        opened: list[str] = []
        for number in range(100):
            assert len(await embed(running, texts(f"Hello {number}"))) == 1
            opened = [replica.address for replica in replicas.ready if replica.circuit.is_open]
            if opened:
                break
        assert opened == [running.upstreams[0].address]
        assert len(replicas.ready) == 2
    assert engines[0].embedded == []


@pytest.mark.parametrize(
    ("num_engines", "message"), [(1, FAILED.message), (1, INTERNAL_MESSAGE), (2, INTERNAL_MESSAGE)]
)
async def test_a_failure_that_may_not_be_the_input_s_stays_internal(
    num_engines: int, message: str
) -> None:
    """That of the only engine, and a bug of every engine; both stay ready."""
    engines = [FakeInference() for _ in range(num_engines)]
    async with orchestrator(*engines) as running:
        for engine in engines:
            engine.refusal = MeshError(ErrorKind.INTERNAL, message)
        with pytest.raises(MeshError) as caught:
            await embed(running, texts("Hello"))
        assert len(running.service._replicas.ready) == num_engines
    assert (caught.value.kind, caught.value.message) == (ErrorKind.INTERNAL, message)


async def test_an_engine_of_another_model_is_no_second_try() -> None:
    """The engine's own error is passed on, not "no engine is ready"."""
    engines = [FakeInference(), FakeInference()]
    engines[1].name = "other"
    async with orchestrator(*engines) as running:
        engines[0].refusal = FAILED
        with pytest.raises(MeshError) as caught:
            await embed(running, texts("Hello", model="fake"))
    assert (caught.value.kind, caught.value.message) == (FAILED.kind, FAILED.message)


async def test_the_tokenizer_knows_the_context_length() -> None:
    """So that it refuses an input that cannot fit before it encodes it."""
    async with orchestrator(FakeInference(context_length=321)) as running:
        await embed(running, texts("a", "b"))
        assert running.tokenizer.max_tokens == [321]


async def test_batches_are_limited_in_tokens() -> None:
    """So that the requests of several clients take turns at a replica."""
    async with orchestrator(FakeInference()) as running:
        responses = await embed(running, ids(*[2000] * 20))
        assert [len(batch) for batch in running.engine.embedded] == [8, 8, 4]
    assert all(sum(map(len, batch)) <= BATCH_TOKENS for batch in running.engine.embedded)
    assert [response.prompt_tokens for response in responses] == [16_000, 16_000, 8000]


async def test_tokens_count_against_the_limit_of_all_requests() -> None:
    """All tokens of a request are reserved before its first batch, and returned at its end."""
    async with orchestrator(FakeInference(), max_outstanding_tokens=1000) as running:
        running.engine.accept_delay = 60.0
        tokens = running.service._pipeline._admission.tokens
        embedding = asyncio.create_task(embed(running, ids(*[9] * 100)))
        await eventually(lambda: running.engine.num_open == 1, "the first batch is computed")
        assert tokens.num_held == 900
        running.engine.accept_delay = 0.0
        for asked in (
            embed(running, ids(200)),
            generate(running, request(sampling={"max_tokens": 500})),
        ):
            with pytest.raises(MeshError, match="900 tokens are in progress") as caught:
                await asked
            assert caught.value.kind is ErrorKind.OVERLOADED
            assert caught.value.retry_after is not None
        embedding.cancel()
        await eventually(lambda: tokens.num_held == 0, "the client has left")
        await eventually(lambda: running.engine.num_open == 0, "the replica's call is cancelled")
        assert len(running.engine.embedded) == 1
        await embed(running, ids(200))


async def test_an_operator_can_cancel_embeddings() -> None:
    """No further batch is computed."""
    async with orchestrator(FakeInference()) as running:
        running.engine.accept_delay = 60.0
        embedding = asyncio.create_task(embed(running, ids(*[1] * 200)))
        await eventually(lambda: running.engine.num_open == 1, "the first batch is computed")
        [active] = running.service._requests
        active.cancel()
        with pytest.raises(MeshError) as caught:
            await embedding
        assert caught.value.kind is ErrorKind.CANCELLED
        assert len(running.engine.embedded) == 1


BAD: list[tuple[orchestrator_pb2.EmbedRequest, ErrorKind, str]] = [
    (texts(), ErrorKind.INVALID_REQUEST, "input must have 1 to 2048 texts, given 0"),
    (texts(*["a"] * (MAX_INPUTS + 1)), ErrorKind.INVALID_REQUEST, "given 2049"),
    (texts("a", ""), ErrorKind.INVALID_REQUEST, "input[1] must not be empty"),
    (
        orchestrator_pb2.EmbedRequest(inputs=[orchestrator_pb2.EmbedInput()]),
        ErrorKind.INVALID_REQUEST,
        "input[0] must be text or token_ids",
    ),
    (texts("a", "word " * 3000), ErrorKind.CONTEXT_TOO_LONG, "input[1] resulted in 15000 tokens"),
    (
        ids(*[2000] * 152),
        ErrorKind.INVALID_REQUEST,
        f"input must have at most {MAX_TOKENS} tokens in all texts together, given 304000",
    ),
    (texts("a", model="nobody"), ErrorKind.MODEL_NOT_FOUND, "no model 'nobody'"),
]


@pytest.mark.parametrize(("asked", "kind", "words"), BAD)
async def test_bad_inputs_are_refused(
    asked: orchestrator_pb2.EmbedRequest, kind: ErrorKind, words: str
) -> None:
    """The error names input, limit and given value; no engine is called."""
    async with orchestrator(FakeInference()) as running:
        with pytest.raises(MeshError) as caught:
            await embed(running, asked)
        assert running.engine.embedded == []
    assert caught.value.kind is kind
    assert words in caught.value.message
    # The path is where the message begins, or, for a context that is too short, continues.
    path = re.search(r"(input(\[\d\])?) (must|resulted)", caught.value.message)
    if path is not None:
        assert caught.value.param == path[1]
