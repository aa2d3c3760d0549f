"""Embeddings beside generation: pieces, turns, limits, blocks, and the ends of calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.api import metrics
from inference.embedding import calls
from inference.embedding.calls import MAX_CALLS, EmbeddingCall
from inference.embedding.pace import (
    MIN_PIECE_TOKENS,
    PIECE_SECONDS,
    SLOWEST_FACTOR,
    Pace,
)
from inference.embedding.queue import Chunk, EmbeddingQueue
from inference.engine.engine import Engine
from inference.engine.errors import (
    ContextTooLong,
    EngineUnavailable,
    InvalidPrompt,
    Overloaded,
    SequenceFailed,
    StepFailed,
)
from inference.sampling.sampling_params import SamplingParams
from mesh.errors import ErrorKind, MeshError
from mesh.protocol.finish import FinishReason
from mesh.rpc.channel import call_unary
from mesh.v1 import inference_pb2_grpc
from tests.inference.client import serving, wait_for_load
from tests.inference.embedding.test_embedding import request
from tests.inference.stub_engine import LONG, collect, running, until
from tests.inference.stub_runner import (
    BLOCK_SIZE,
    StubRunner,
    make_sequence,
    make_stub_engine,
)

if TYPE_CHECKING:
    Stub = inference_pb2_grpc.InferenceServiceAsyncStub

POISON = 13


class StubEmbedder:
    """The sum of an input is [sum of its ids, its length]; a test makes it block or fail."""

    def __init__(self) -> None:
        self.pieces: list[list[tuple[int, int, int]]] = []
        """Of each piece: first id, begin and number of tokens of its chunks."""
        self.recovered: list[int] = []
        self.error: Exception | None = None
        self.gate: threading.Semaphore | None = None

    def compute(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float64]]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=10), "the test released no piece"
        for chunk in chunks:
            assert len(chunk.blocks) * BLOCK_SIZE >= chunk.begin + len(chunk.token_ids)
        self.pieces.append([(c.token_ids[0], c.begin, len(c.token_ids)) for c in chunks])
        if self.error is not None:
            raise self.error
        return [
            np.array([np.nan if POISON in c.token_ids else sum(c.token_ids), len(c.token_ids)])
            for c in chunks
        ]

    def recover(self, blocks: Sequence[int]) -> None:
        self.recovered += blocks


def make_queue(embedder: StubEmbedder, **options: int) -> tuple[Engine, EmbeddingQueue]:
    """An engine that embeds with the stub, and its queue."""
    engine = make_stub_engine(StubRunner(), embedder=embedder, **options)
    assert engine.embeddings is not None
    return engine, engine.embeddings


def finish_all(engine: Engine, queue: EmbeddingQueue) -> list[EmbeddingCall]:
    """Run pieces until no call is left; the blocks must then be free."""
    ended: list[EmbeddingCall] = []
    for _ in range(1000):
        ended += queue.run_piece()
        if not queue.has_work:
            break
    assert not queue.has_work
    engine.check_when_idle()
    assert engine.load().kv_usage == 0
    return ended


def unit(*values: float) -> list[float]:
    """The vector of length 1 in this direction."""
    vector = np.array(values)
    return list(vector / np.linalg.norm(vector))


def test_calls_take_turns_by_input_and_long_inputs_are_cut() -> None:
    """No piece exceeds the budget, and a short call does not wait for a long one."""
    embedder = StubEmbedder()
    engine, queue = make_queue(embedder, max_num_batched_tokens=32)
    long, short = EmbeddingCall([[1] * 70, [2] * 70]), EmbeddingCall([[3, 4]])
    queue.add(long)
    queue.add(short)
    counter = metrics.EMBEDDING_TOKENS.labels(*metrics._Engine.labels)._value
    before = counter.get()
    assert finish_all(engine, queue) == [short, long]
    assert counter.get() - before == 142
    assert embedder.pieces == [
        [(1, 0, 32)],
        [(1, 32, 32)],
        [(1, 64, 6), (3, 0, 2), (2, 0, 24)],
        [(2, 24, 32)],
        [(2, 56, 14)],
    ]
    assert short.vectors == [pytest.approx(unit(7, 2))]
    assert long.vectors == [pytest.approx(unit(70, 70)), pytest.approx(unit(140, 70))]


def test_an_input_without_a_finite_vector_fails_alone() -> None:
    """It is a client's mistake: the others in its piece go on, and its blocks are cleared."""
    embedder = StubEmbedder()
    engine, queue = make_queue(embedder)
    poison, other = EmbeddingCall([[1], [POISON], [2]]), EmbeddingCall([[3]])
    queue.add(poison)
    queue.add(other)
    assert finish_all(engine, queue) == [other, poison]
    assert isinstance(poison.error, InvalidPrompt)
    assert other.vectors == [pytest.approx(unit(3, 1))]
    assert len(embedder.recovered) == 1
    assert engine.healthy


def test_a_failed_piece_ends_its_calls_and_not_the_engine() -> None:
    """The next call is computed."""
    embedder = StubEmbedder()
    engine, queue = make_queue(embedder)
    for _ in range(5):
        failed = EmbeddingCall([[1, 2], [3]])
        embedder.error = RuntimeError("no")
        queue.add(failed)
        assert finish_all(engine, queue) == [failed]
        assert isinstance(failed.error, SequenceFailed)
    embedder.error = None
    queue.add(EmbeddingCall([[1]]))
    assert finish_all(engine, queue)[0].error is None
    assert engine.healthy


def test_a_failed_piece_of_several_calls_is_no_failure_of_one() -> None:
    """Their error says so: the caller judges the replica by it."""
    embedder = StubEmbedder()
    engine, queue = make_queue(embedder)
    calls = [EmbeddingCall([[1, 2]]), EmbeddingCall([[3]])]
    for call in calls:
        queue.add(call)
    embedder.error = RuntimeError("no")
    assert finish_all(engine, queue) == calls
    assert all(isinstance(call.error, StepFailed) for call in calls)


async def test_a_caller_sees_whether_its_inputs_failed_alone() -> None:
    """INTERNAL, which the engine reports, is the input's own failure; UNAVAILABLE may be not."""
    embedder = StubEmbedder()
    async with serving(lambda: make_stub_engine(StubRunner(), embedder=embedder)) as served:
        stub: Stub = inference_pb2_grpc.InferenceServiceStub(served.channel)
        embedder.error = RuntimeError("secret")
        with pytest.raises(MeshError, match="the embedding failed: RuntimeError") as caught:
            await call_unary(stub.Embed, request([1], [2]), timeout=20)
        assert (caught.value.kind, caught.value.is_reported) == (ErrorKind.INTERNAL, True)
        embedder.error = None
        embedder.gate = threading.Semaphore(0)
        first = asyncio.create_task(call_unary(stub.Embed, request([1]), timeout=20))
        await wait_for_load(stub, 0, 1)
        others = [
            asyncio.create_task(call_unary(stub.Embed, request([n]), timeout=20)) for n in (2, 3)
        ]
        await wait_for_load(stub, 0, 3)
        embedder.gate.release(1)
        await first
        embedder.error = RuntimeError("secret")
        embedder.gate.release(1000)
        results = await asyncio.gather(*others, return_exceptions=True)
        kinds = [each.kind for each in results if isinstance(each, MeshError)]
        assert kinds == [ErrorKind.UNAVAILABLE] * 2
        embedder.error = None
        assert len((await call_unary(stub.Embed, request([1]), timeout=20)).embeddings) == 1


def test_a_running_sequence_takes_the_blocks_of_an_input() -> None:
    """The input begins again afterwards; the sequence is not preempted."""
    embedder = StubEmbedder()
    engine, queue = make_queue(embedder, num_blocks=12, max_num_batched_tokens=16)
    call = EmbeddingCall([[1] * 40])
    queue.add(call)
    assert queue.run_piece() == []
    sequence = make_sequence("a", [5, 6], 38)
    engine.add(sequence)
    while engine.load().num_running or engine.load().num_waiting:
        engine.step()
    assert sequence.finish is not None
    assert sequence.finish.reason is FinishReason.LENGTH
    assert sequence.finish.num_preemptions == 0
    assert finish_all(engine, queue) == [call]
    assert [piece[0][1] for piece in embedder.pieces] == [0, 0, 16, 32]
    assert call.vectors == [pytest.approx(unit(40, 40))]


def test_an_input_that_waits_for_blocks_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that arrive later leave them free, so a full KV cache cannot starve embeddings."""
    monkeypatch.setattr("inference.embedding.queue.CLAIM_SECONDS", 0.0)
    engine, queue = make_queue(StubEmbedder(), num_blocks=12, max_num_seqs=1)
    call = EmbeddingCall([[1] * 40])
    engine.add(make_sequence("a", [1] * 20, 4))
    engine.step()
    queue.add(call)
    assert queue.run_piece() == []
    engine.add(make_sequence("b", [2] * 20, 4))
    finished = 0
    while not (ended := queue.run_piece()):
        finished += sum(output.finish is not None for output in engine.step())
    assert ended == [call]
    assert finished == 1
    while engine.has_work:
        finished += sum(output.finish is not None for output in engine.step())
    assert finished == 2
    engine.check_when_idle()


def test_generation_has_two_thirds_of_the_time_and_pieces_are_short() -> None:
    """A piece takes about PIECE_SECONDS, whatever the speed; the next one is due two later."""
    pace = Pace(2048)
    assert pace.num_tokens == MIN_PIECE_TOKENS
    for _ in range(30):
        pace.computed(pace.num_tokens, pace.num_tokens / 20_000)
    assert pace.num_tokens == pytest.approx(PIECE_SECONDS * 20_000, rel=0.05)
    for _ in range(30):
        pace.computed(pace.num_tokens, pace.num_tokens / 100)
    assert pace.num_tokens == MIN_PIECE_TOKENS
    assert pace.is_due(generating=False)
    for _ in range(2):
        assert not pace.is_due(generating=True)
        pace.generated(MIN_PIECE_TOKENS / 100)
    assert pace.is_due(generating=True)


def test_pieces_grow_where_a_forward_pass_takes_a_constant_time() -> None:
    """They take a quarter longer than the shortest, however the time grows with the tokens."""
    for constant, per_token in ((0.02, 1e-5), (0.06, 3e-3)):
        pace = Pace(2048)
        for _ in range(300):
            pace.computed(pace.num_tokens, constant + per_token * pace.num_tokens)
        least = constant + per_token * MIN_PIECE_TOKENS
        expected = (SLOWEST_FACTOR * least - constant) / per_token
        assert pace.num_tokens == pytest.approx(expected, rel=0.1)


async def test_a_new_sequence_waits_for_one_piece_only() -> None:
    """Its first step follows the piece that ran when it arrived."""
    embedder, runner = StubEmbedder(), StubRunner()
    embedder.gate = threading.Semaphore(0)
    async with running(runner, embedder=embedder) as engine:
        embedding = asyncio.create_task(engine.embed([[1] * 100] * 8))
        await until(lambda: engine.load().num_waiting == 1)
        generating = asyncio.create_task(collect(engine, "a", [1], SamplingParams(max_tokens=1)))
        await until(lambda: engine.load().num_waiting == 2)
        embedder.gate.release(1)
        await generating
        assert len(embedder.pieces) == 1
        embedder.gate.release(1000)
        assert len(await embedding) == 8


async def test_a_call_ends_with_its_client_within_one_piece() -> None:
    """After the piece in progress nothing more of it is computed, and its blocks are free."""
    embedder = StubEmbedder()
    embedder.gate = threading.Semaphore(0)
    async with running(StubRunner(), embedder=embedder) as engine:
        embedding = asyncio.create_task(engine.embed([[1] * 100] * 64))
        embedder.gate.release(2)
        await until(lambda: len(embedder.pieces) == 2)
        embedding.cancel()
        await asyncio.wait([embedding])
        embedder.gate.release(1)
        other = asyncio.create_task(engine.embed([[2, 3]]))
        embedder.gate.release(2)
        assert await other == [pytest.approx(unit(5, 2))]
        assert sum(chunk[0] == 1 for piece in embedder.pieces for chunk in piece) == 3
        await until(lambda: engine.load().kv_usage == 0)
        assert engine.load().num_waiting == 0


async def test_stopping_ends_calls_within_one_piece() -> None:
    """They end as unavailable, so that another replica computes them."""
    embedder = StubEmbedder()
    embedder.gate = threading.Semaphore(0)
    async with running(StubRunner(), embedder=embedder) as engine:
        embedding = asyncio.create_task(engine.embed([[1] * 100] * 64))
        embedder.gate.release(2)
        await until(lambda: len(embedder.pieces) == 2)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)
        embedder.gate.release(1)
        with pytest.raises(EngineUnavailable, match="stopped"):
            await embedding
        await stopping
        assert len(embedder.pieces) <= 3
        with pytest.raises(EngineUnavailable):
            await engine.embed([[1]])


async def test_a_piece_that_does_not_return_ends_the_calls() -> None:
    """The watchdog finds it as it finds a stuck step."""
    embedder = StubEmbedder()
    embedder.gate = threading.Semaphore(0)
    async with running(StubRunner(), embedder=embedder, step_timeout=0.05) as engine:
        waiting = asyncio.create_task(engine.embed([[1]] * 2))
        await until(lambda: engine.load().num_waiting == 1)
        embedder.gate.release(1)
        assert len(await waiting) == 2
        with pytest.raises(EngineUnavailable, match="does not return"):
            await engine.embed([[1]])
        embedder.gate.release(1000)


async def test_tokens_and_calls_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they may have more tokens than the KV cache, which only the running ones use."""
    monkeypatch.setattr(calls, "MAX_LIVE_TOKENS", 180)
    embedder = StubEmbedder()
    embedder.gate = threading.Semaphore(0)
    async with running(StubRunner(), embedder=embedder, num_blocks=16) as engine:
        with pytest.raises(ContextTooLong, match=r"inputs\[0\] has 65 tokens"):
            await engine.embed([[1] * 65])
        large = asyncio.create_task(engine.embed([[1] * 60] * 3))
        await until(lambda: engine.load().num_waiting == 1)
        with pytest.raises(Overloaded, match=r"180 tokens together\. Live: 180\. Given: 1"):
            await engine.embed([[1]])
        embedder.gate.release(1000)
        assert len(await large) == 3
        embedder.gate = threading.Semaphore(0)
        small = [asyncio.create_task(engine.embed([[1]])) for _ in range(MAX_CALLS)]
        await until(lambda: engine.load().num_waiting == MAX_CALLS)
        with pytest.raises(Overloaded, match="at most 33 embedding calls"):
            await engine.embed([[1]])
        embedder.gate.release(1000)
        await asyncio.gather(*small)


async def test_embeddings_and_generation_share_an_engine() -> None:
    """Both finish, whatever else runs; nothing stays allocated."""
    embedder = StubEmbedder()
    async with running(StubRunner(), embedder=embedder, num_blocks=200) as engine:
        embeddings = [engine.embed([[number] * 30] * 8) for number in range(1, 4)]
        streams = [collect(engine, str(number), [number], LONG) for number in range(4)]
        vectors, _ = await asyncio.gather(asyncio.gather(*embeddings), asyncio.gather(*streams))
        for number, found in enumerate(vectors, 1):
            assert found == [pytest.approx(unit(30 * number, 30))] * 8
        await until(lambda: engine.load().kv_usage == 0)
