"""The encoder's engine over real gRPC: batches of several clients, limits, errors and the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.api.service import InferenceService
from inference.embedding.calls import MAX_CALLS, EmbeddingCall
from inference.encoder.batch import EncoderInput
from inference.encoder.engine import EncoderEngine, LoadedEncoder
from inference.encoder.queue import MAX_FAILURES, EncoderQueue
from inference.engine.errors import EngineError, EngineUnavailable, ModelLoadError, UnsupportedCall
from inference.engine.interface import ModelInfo, TokenPair
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.model_kind import ModelKind
from mesh.rpc.channel import call_unary
from mesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tests.helpers import eventually, serve
from tests.inference.client import collect, make_request
from tests.inference.encoder.encoders import CROSS_ENCODERS, EMBEDDINGS, random_texts, save
from tests.inference.encoder.test_parity import load

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

MAX_TOKENS = 64
POISON = 66


class FakeModel:
    """A vector is (sum of the ids, number of first tokens); a gate can hold batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        """Lengths of the inputs of each batch."""
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def compute(self, inputs: Sequence[EncoderInput]) -> NDArray[np.float32]:
        self.batches.append([len(each.token_ids) for each in inputs])
        assert self.gate.wait(20), "the test never opened the gate"
        if self.failure is not None:
            raise self.failure
        rows = [[sum(each.token_ids), each.num_first_tokens] for each in inputs]
        found = np.array(rows, dtype=np.float32)
        found[[POISON in each.token_ids for each in inputs]] = np.nan
        return found


def loaded(model: FakeModel, kind: ModelKind = ModelKind.EMBEDDING) -> LoadedEncoder:
    info = ModelInfo(
        name="encoder",
        architecture="BertModel",
        dtype="float32",
        device="cpu",
        vocab_size=99,
        max_context=50,
        num_parameters=1,
        eos_token_ids=(),
        kind=kind,
        embedding_length=2,
    )
    return LoadedEncoder(info, EncoderQueue(model, MAX_TOKENS, 0.0), MAX_TOKENS)


@asynccontextmanager
async def running(
    model: FakeModel, kind: ModelKind = ModelKind.EMBEDDING
) -> AsyncIterator[EncoderEngine]:
    """A started engine; afterwards no call is live and the thread has ended."""
    engine = EncoderEngine(lambda: loaded(model, kind), on_cpu=False)
    await engine.start()
    try:
        yield engine
    finally:
        model.gate.set()
        await engine.stop()
    assert engine._calls.num_live == 0
    assert engine._thread is not None
    assert not engine._thread.is_alive()


async def test_inputs_of_several_clients_share_a_batch() -> None:
    """While a batch runs the calls of three clients arrive; the next batch has all of them."""
    model = FakeModel()
    async with running(model) as engine:
        model.gate.clear()
        first = asyncio.create_task(engine.embed([[1]]))
        await eventually(lambda: len(model.batches) == 1, "the first batch runs")
        others = [asyncio.create_task(engine.embed([[n] * 9, [n]])) for n in (2, 3, 4)]
        await eventually(lambda: engine.load().num_waiting == 3, "three calls wait")
        assert engine.load().num_running == 1
        model.gate.set()
        assert await first == [[1, 1]]
        assert await asyncio.gather(*others) == [[[9 * n, 9], [n, 1]] for n in (2, 3, 4)]
    # Turns by input: the first inputs of all calls before the second ones.
    assert model.batches == [[1], [9, 9, 9, 1, 1, 1]]


async def test_a_batch_has_at_most_its_tokens() -> None:
    """The vectors of a call are in the order of its inputs, over several batches."""
    model = FakeModel()
    async with running(model) as engine:
        found = await engine.embed([[n] * 30 for n in range(1, 6)])
    assert found == [[30 * n, 30] for n in range(1, 6)]
    assert model.batches == [[30, 30], [30, 30], [30]]


async def test_a_short_call_does_not_wait_for_a_long_one() -> None:
    """Its input is in the batch after the running one."""
    model = FakeModel()
    async with running(model) as engine:
        model.gate.clear()
        long = asyncio.create_task(engine.embed([[1] * 50] * 8))
        await eventually(lambda: len(model.batches) == 1, "the first batch runs")
        short = asyncio.create_task(engine.embed([[7]]))
        await eventually(lambda: engine.load().num_waiting == 1, "the short call waits")
        model.gate.set()
        await asyncio.gather(long, short)
    assert [1] in [batch[-1:] for batch in model.batches[:3]]


async def test_a_cancelled_call_is_computed_no_further() -> None:
    """Only the batch in progress ends."""
    model = FakeModel()
    async with running(model) as engine:
        model.gate.clear()
        call = asyncio.create_task(engine.embed([[1] * 50] * 8))
        await eventually(lambda: len(model.batches) == 1, "the first batch runs")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        model.gate.set()
        assert await engine.embed([[2]]) == [[2, 1]]
    assert len(model.batches) == 2


def test_the_error_of_an_ended_call_remains() -> None:
    """A call of a stuck step has its error when the step returns and the call is forgotten."""
    queue = EncoderQueue(FakeModel(), MAX_TOKENS, 0.0)
    call = EmbeddingCall([[1], [2]])
    queue.add(call)
    error = call.error = EngineUnavailable("a step of the engine does not return")
    call.abandoned = True
    assert queue.run_batch() == []
    assert not queue.has_work
    assert call.error is error


async def test_a_failed_batch_ends_its_calls_alone() -> None:
    """The engine is unhealthy only after several failures in a row."""
    model = FakeModel()
    async with running(model) as engine:
        model.failure = RuntimeError("out of memory")
        for _ in range(MAX_FAILURES - 1):
            with pytest.raises(EngineError, match="the embedding failed: RuntimeError"):
                await engine.embed([[1]])
        assert engine.healthy
        model.failure = None
        assert await engine.embed([[1]]) == [[1, 1]]
        model.failure = RuntimeError("device lost")
        for _ in range(MAX_FAILURES):
            with pytest.raises(EngineError):
                await engine.embed([[1]])
        await eventually(lambda: not engine.healthy, "the engine is unhealthy")
        with pytest.raises(EngineUnavailable):
            await engine.embed([[1]])
        assert [healthy async for healthy in engine.health_changes()] in ([], [False])


async def test_a_vector_that_is_not_finite_is_the_inputs_fault() -> None:
    """The other call of the same batch has its vectors."""
    model = FakeModel()
    async with running(model) as engine:
        model.gate.clear()
        blocking = asyncio.create_task(engine.embed([[1]]))
        await eventually(lambda: len(model.batches) == 1, "the first batch runs")
        calls = [engine.embed([[5], [POISON]]), engine.embed([[5]])]
        both = asyncio.gather(*calls, return_exceptions=True)
        await eventually(lambda: engine.load().num_waiting == 2, "both calls wait")
        model.gate.set()
        bad, good = await both
        await blocking
    assert "inputs[1] gives no finite vector" in str(bad)
    assert good == [[5, 1]]


async def test_too_many_calls_are_refused() -> None:
    """With RESOURCE_EXHAUSTED and a time to retry, at once."""
    model = FakeModel()
    async with running(model) as engine, serve(InferenceService(engine).servicer) as served:
        stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        model.gate.clear()
        calls = [asyncio.create_task(engine.embed([[1]])) for _ in range(MAX_CALLS)]
        await eventually(lambda: engine._calls.num_live == MAX_CALLS, "all calls are live")
        request = inference_pb2.InferenceServiceEmbedRequest(inputs=[{"ids": [1]}])  # type: ignore[list-item]
        with pytest.raises(MeshError) as caught:
            await call_unary(stub.Embed, request, timeout=20)
        assert caught.value.kind is ErrorKind.OVERLOADED
        model.gate.set()
        assert await asyncio.gather(*calls) == [[[1, 1]]] * MAX_CALLS


async def test_stopping_ends_waiting_calls() -> None:
    """After the drain; and later calls are refused."""
    model = FakeModel()
    engine = EncoderEngine(lambda: loaded(model), on_cpu=False)
    await engine.start()
    model.gate.clear()
    calls = [asyncio.create_task(engine.embed([[1] * 50] * 3)) for _ in range(2)]
    await eventually(lambda: len(model.batches) == 1, "the first batch runs")
    stopping = asyncio.create_task(engine.stop(drain_timeout=0.0))
    await eventually(lambda: engine._stopping, "the engine stops")
    model.gate.set()
    await stopping
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(each, EngineUnavailable) for each in found)
    with pytest.raises(EngineUnavailable):
        await engine.embed([[1]])


async def test_an_encoder_that_cannot_be_loaded() -> None:
    """`start` raises the reason."""

    def fail() -> LoadedEncoder:
        raise ModelLoadError("no weights")

    engine = EncoderEngine(fail, on_cpu=False)
    with pytest.raises(ModelLoadError, match="no weights"):
        await engine.start()
    assert not engine.healthy
    await engine.stop()


async def test_each_kind_refuses_the_calls_of_the_others() -> None:
    """With UNIMPLEMENTED: an encoder generates no text, a cross-encoder embeds none."""
    async with running(FakeModel()) as engine, serve(InferenceService(engine).servicer) as served:
        stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        with pytest.raises(MeshError, match="encoder is an encoder, which generates no") as caught:
            await collect(stub, make_request())
        assert caught.value.kind is ErrorKind.UNIMPLEMENTED
        with pytest.raises(UnsupportedCall, match="scores no pairs"):
            await engine.score([TokenPair([1, 2], 1)])
        model = await call_unary(stub.GetModel, inference_pb2.GetModelRequest(), timeout=20)
        assert model.kind == common_pb2.MODEL_KIND_EMBEDDING
        assert model.embedding_length == 2
    async with running(FakeModel(), ModelKind.SCORE) as engine:
        with pytest.raises(UnsupportedCall, match="embeds no texts"):
            await engine.embed([[1]])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [([[99]], "0 to 98. Given: 99"), ([[]], "at least 1 token"), ([[1] * 51], "50 tokens")],
)
async def test_bad_inputs_are_refused(inputs: list[list[int]], words: str) -> None:
    """As by a generation model."""
    async with running(FakeModel()) as engine:
        with pytest.raises(EngineError, match=words):
            await engine.embed(inputs)


async def test_real_models_over_grpc(tmp_path: Path) -> None:
    """An encoder and a cross-encoder, from their folders to the response."""
    save(EMBEDDINGS["bert"], tmp_path / "embed")
    save(CROSS_ENCODERS["bert"], tmp_path / "score")
    texts = random_texts(7, 3)
    async with engine_of(tmp_path / "embed") as stub:
        inputs = [common_pb2.TokenIds(ids=text) for text in texts]
        embedded = await call_unary(
            stub.Embed, inference_pb2.InferenceServiceEmbedRequest(inputs=inputs), timeout=20
        )
        assert [len(each.values) for each in embedded.embeddings] == [64, 64]
    async with engine_of(tmp_path / "score") as stub:
        pairs = [inference_pb2.TokenPair(token_ids=text, num_first_tokens=2) for text in texts]
        scored = await call_unary(
            stub.Score, inference_pb2.InferenceServiceScoreRequest(inputs=pairs), timeout=20
        )
        assert len(scored.scores) == 2
        assert all(0 < score < 1 for score in scored.scores)


@asynccontextmanager
async def engine_of(folder: Path) -> AsyncIterator[Stub]:
    engine = EncoderEngine(lambda: load(folder), on_cpu=False)
    await engine.start()
    try:
        async with serve(InferenceService(engine).servicer) as served:
            yield inference_pb2_grpc.InferenceServiceStub(served.channel)
    finally:
        await engine.stop()
