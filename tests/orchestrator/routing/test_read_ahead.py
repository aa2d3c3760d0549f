"""Chunks grow while their consumer is busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import ErrorKind, MeshError
from mesh.protocol.finish import FinishReason, GenerationFinish
from mesh.protocol.logprobs import TokenLogprob
from mesh.protocol.tokens import TokenChunk
from mesh.protocol.usage import Usage
from mesh.rpc.channel import open_stream
from mesh.v1 import orchestrator_pb2
from orchestrator.routing.read_ahead import MAX_PENDING_TOKENS, ReadAhead, read_ahead
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, orchestrator

FINISH = GenerationFinish(FinishReason.STOP, Usage(1, 2, 0))
END = TokenChunk([], finish=FINISH)


async def tokens(items: Iterable[TokenChunk | Exception]) -> AsyncIterator[TokenChunk]:
    """Yields the items as fast as they are read, and raises the exceptions."""
    for item in items:
        await asyncio.sleep(0)
        if isinstance(item, Exception):
            raise item
        yield item


@pytest.mark.timeout(20)
async def test_chunks_are_merged_while_the_consumer_is_busy(no_tasks_left: None) -> None:
    """Ids and log probabilities keep their order, and the finish is in the merged chunk."""
    items = [TokenChunk([n], [TokenLogprob(n, -1.0)]) for n in range(5)]
    async with ReadAhead(tokens([TokenChunk([]), *items, END])) as ahead:
        assert await anext(ahead) == TokenChunk([], [])
        for _ in range(30):
            await asyncio.sleep(0)
        chunk = await anext(ahead)
        assert chunk.token_ids == [0, 1, 2, 3, 4]
        assert [logprob.token_id for logprob in chunk.logprobs] == [0, 1, 2, 3, 4]
        assert chunk.finish == FINISH
        with pytest.raises(StopAsyncIteration):
            await anext(ahead)


async def test_a_fast_consumer_gets_each_chunk_separately(no_tasks_left: None) -> None:
    """No chunk is delayed."""

    async def slow() -> AsyncIterator[TokenChunk]:
        for n in range(4):
            await asyncio.sleep(0.01)
            yield TokenChunk([n])
        yield END

    async with ReadAhead(slow()) as ahead:
        chunks = [chunk.token_ids async for chunk in ahead]
    assert chunks == [[0], [1], [2], [3]]


async def test_an_error_comes_after_the_chunks_before_it(no_tasks_left: None) -> None:
    """No received token is lost with the replica."""
    error = MeshError(ErrorKind.UNAVAILABLE, "gone")
    async with ReadAhead(tokens([TokenChunk([1]), TokenChunk([2]), error])) as ahead:
        for _ in range(20):
            await asyncio.sleep(0)
        chunk = await anext(ahead)
        assert chunk.token_ids == [1, 2]
        with pytest.raises(MeshError, match="gone"):
            await anext(ahead)


async def test_reading_ahead_has_a_limit(no_tasks_left: None) -> None:
    """At the limit the source pauses until the consumer takes the chunk."""
    num_given = 0

    async def endless() -> AsyncIterator[TokenChunk]:
        nonlocal num_given
        while True:
            num_given += 100
            yield TokenChunk(list(range(100)))

    async with ReadAhead(endless()) as ahead:
        await eventually(lambda: num_given >= MAX_PENDING_TOKENS, "the source is read")
        await asyncio.sleep(0.01)
        assert num_given <= MAX_PENDING_TOKENS + 100
        before = num_given
        await asyncio.sleep(0.01)
        assert num_given == before
        chunk = await anext(ahead)
        assert len(chunk.token_ids) == before
        await eventually(lambda: num_given > before, "the source goes on")


@settings(deadline=None, max_examples=50)
@given(
    chunks=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=10),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=10),
    fails=st.booleans(),
)
def test_no_token_is_lost_or_duplicated(
    chunks: list[list[int]], pauses: list[int], fails: bool
) -> None:
    """For any interleaving the ids are equal and there is one end."""
    error = MeshError(ErrorKind.UNAVAILABLE, "gone")

    async def read() -> None:
        read_ids: list[int] = []
        ends = 0
        source = tokens([*map(TokenChunk, chunks), error if fails else END])
        async with ReadAhead(source) as ahead:
            try:
                turn = 0
                async for chunk in ahead:
                    read_ids += chunk.token_ids
                    ends += chunk.finish is not None
                    for _ in range(pauses[turn % len(pauses)]):
                        await asyncio.sleep(0)
                    turn += 1
            except MeshError:
                ends += 1
        assert read_ids == [token_id for chunk in chunks for token_id in chunk]
        assert ends == 1

    asyncio.run(read())


async def test_a_stalled_client_does_not_delay_others() -> None:
    """Its next message grows, no queue forms, and it loses no text."""
    # The windows of the two hops hold about 4,300 of these tokens, one in each message; the rest
    # has to be merged, and is half of what may be pending.
    text = "The quick brown fox jumps over the lazy dog. " * 440
    async with orchestrator(FakeInference(text, context_length=100_000)) as running:
        num_tokens = len(running.engine.ids)
        asked = orchestrator_pb2.GenerateRequest(text="Hello")
        async with open_stream(running.stub.Generate, asked) as stalled:
            await anext(stalled)
            short = orchestrator_pb2.GenerateRequest(text="Hi", sampling={"max_tokens": 200})
            async with open_stream(running.stub.Generate, short) as other:
                text_of_other = "".join([event.delta.text async for event in other])
            assert text_of_other == text[: len(text_of_other)] != ""
            await eventually(lambda: running.engine.num_open == 0, "the engine is done", 45)
            deltas = [event.delta async for event in stalled if event.HasField("delta")]
        assert "".join(delta.text for delta in deltas) == text
        assert sum(delta.num_tokens for delta in deltas) == num_tokens
        assert max(delta.num_tokens for delta in deltas) > 50


class Holding:
    """A stream that has its first `num_ready` chunks when it is read first, then one at a time."""

    def __init__(self, items: list[TokenChunk], num_ready: int) -> None:
        self._items = items
        self._num_ready = num_ready

    @property
    def has_ready(self) -> bool:
        return self._num_ready > 0 and bool(self._items)

    def __aiter__(self) -> Holding:
        return self

    async def __anext__(self) -> TokenChunk:
        self._num_ready -= 1
        if not self._items:
            raise StopAsyncIteration
        return self._items.pop(0)


async def test_what_a_stream_holds_is_merged_without_a_task(no_tasks_left: None) -> None:
    """The chunks that have arrived, in order; what arrives later is a chunk of its own."""
    items = [TokenChunk([n], [TokenLogprob(n, -1.0)]) for n in range(4)]
    before = len(asyncio.all_tasks())
    async with read_ahead(Holding([TokenChunk([]), *items, END], 4)) as chunks:
        assert len(asyncio.all_tasks()) == before
        merged = [chunk async for chunk in chunks]
    assert [list(chunk.token_ids) for chunk in merged] == [[0, 1, 2], [3], []]
    assert [each.token_id for each in merged[0].logprobs] == [0, 1, 2]
    assert [chunk.finish for chunk in merged] == [None, None, FINISH]


async def test_a_held_stream_is_merged_up_to_a_bound(no_tasks_left: None) -> None:
    """And never past its finish."""
    many = [TokenChunk(list(range(MAX_PENDING_TOKENS // 2))) for _ in range(5)]
    async with read_ahead(Holding([*many, END], 100)) as chunks:
        sizes = [len(chunk.token_ids) async for chunk in chunks]
    assert sizes == [MAX_PENDING_TOKENS, MAX_PENDING_TOKENS, MAX_PENDING_TOKENS // 2]
