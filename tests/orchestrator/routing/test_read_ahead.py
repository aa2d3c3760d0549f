"""Chunks that grow while their reader is busy."""

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
from orchestrator.routing.read_ahead import MAX_PENDING_TOKENS, ReadAhead
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, orchestrator

FINISH = GenerationFinish(FinishReason.STOP, Usage(1, 2, 0))
END = TokenChunk([], finish=FINISH)


async def tokens(items: Iterable[TokenChunk | Exception]) -> AsyncIterator[TokenChunk]:
    """Gives the items as fast as they are taken, and raises the exceptions."""
    for item in items:
        await asyncio.sleep(0)
        if isinstance(item, Exception):
            raise item
        yield item


@pytest.mark.timeout(20)
async def test_what_comes_while_the_reader_is_busy_is_one_chunk(no_tasks_left: None) -> None:
    """Ids and log probabilities are joined in order, and the finish comes with them."""
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


async def test_a_quick_reader_gets_each_chunk_as_it_comes(no_tasks_left: None) -> None:
    """Nothing waits to be joined."""

    async def slow() -> AsyncIterator[TokenChunk]:
        for n in range(4):
            await asyncio.sleep(0.01)
            yield TokenChunk([n])
        yield END

    async with ReadAhead(slow()) as ahead:
        chunks = [chunk.token_ids async for chunk in ahead]
    assert chunks == [[0], [1], [2], [3]]


async def test_a_failure_comes_after_what_came_before_it(no_tasks_left: None) -> None:
    """No token that was received is lost with the replica."""
    error = MeshError(ErrorKind.UNAVAILABLE, "gone")
    async with ReadAhead(tokens([TokenChunk([1]), TokenChunk([2]), error])) as ahead:
        for _ in range(20):
            await asyncio.sleep(0)
        chunk = await anext(ahead)
        assert chunk.token_ids == [1, 2]
        with pytest.raises(MeshError, match="gone"):
            await anext(ahead)


async def test_reading_ahead_has_a_limit(no_tasks_left: None) -> None:
    """Beyond it the source is held up, until the reader takes what there is."""
    given_out = 0

    async def endless() -> AsyncIterator[TokenChunk]:
        nonlocal given_out
        while True:
            given_out += 100
            yield TokenChunk(list(range(100)))

    async with ReadAhead(endless()) as ahead:
        await eventually(lambda: given_out >= MAX_PENDING_TOKENS, "the source is read")
        await asyncio.sleep(0.01)
        assert given_out <= MAX_PENDING_TOKENS + 100
        before = given_out
        await asyncio.sleep(0.01)
        assert given_out == before
        chunk = await anext(ahead)
        assert len(chunk.token_ids) == before
        await eventually(lambda: given_out > before, "the source goes on")


@settings(deadline=None, max_examples=50)
@given(
    chunks=st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=10),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=10),
    fails=st.booleans(),
)
def test_nothing_is_lost_or_doubled(
    chunks: list[list[int]], pauses: list[int], fails: bool
) -> None:
    """However reader and source take turns, the ids are the same and the end comes once."""
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


async def test_a_client_that_does_not_read_holds_up_nobody_else() -> None:
    """Its messages grow instead of lining up; others stream on, and it loses nothing."""
    text = "The quick brown fox jumps over the lazy dog. " * 400
    async with orchestrator(FakeInference(text, context_length=100_000)) as running:
        num_tokens = len(running.engine.ids)
        asked = orchestrator_pb2.GenerateRequest(text="Hello")
        async with open_stream(running.stub.Generate, asked) as stalled:
            await anext(stalled)
            short = orchestrator_pb2.GenerateRequest(text="Hi", sampling={"max_tokens": 200})
            async with open_stream(running.stub.Generate, short) as other:
                told = "".join([event.delta.text async for event in other])
            assert told == text[: len(told)] != ""
            await eventually(lambda: running.engine.num_open == 0, "the engine is done", 45)
            deltas = [event.delta async for event in stalled if event.HasField("delta")]
        assert "".join(delta.text for delta in deltas) == text
        assert sum(delta.num_tokens for delta in deltas) == num_tokens
        assert max(delta.num_tokens for delta in deltas) > 50
