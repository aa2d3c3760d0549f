"""VllmEngine.SubscribeKvEvents: the subscriber's picture of the prefix cache is the engine's."""

from __future__ import annotations

import asyncio
import time
from array import array
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import pytest
from smg_grpc_proto.generated import common_pb2

from inference.api.vllm_engine import kv_events, service
from inference.api.vllm_engine.kv_events import hash_number
from inference.engine import block_feed
from inference.engine.block_feed import BlockFeed
from inference.scheduler.block_events import RemovedBlock, StoredBlock
from tests.helpers import eventually
from tests.inference.api.vllm_engine.conftest import BLOCK_SIZE, NUM_BLOCKS, Engines
from tests.inference.api.vllm_engine.test_generate import request_of, responses_to


class Picture:
    """What a subscriber knows: blocks by hash, with their parents and tokens."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        self.number = 0
        self.num_removed = 0

    def apply(self, batch: Any) -> None:
        assert not self.number or batch.sequence_number == self.number + 1, "a gap"
        self.number = batch.sequence_number
        for event in batch.events:
            kind = event.WhichOneof("data")
            if kind == "cleared":
                self.blocks.clear()
            elif kind == "removed":
                for number in event.removed.block_hashes:
                    self.blocks.pop(number, None)
                    self.num_removed += 1
            else:
                has_parent = event.stored.HasField("parent_block_hash")
                parent = event.stored.parent_block_hash if has_parent else None
                for block in event.stored.blocks:
                    self.blocks[block.block_hash] = parent, tuple(block.token_ids)
                    parent = block.block_hash

    def prefix(self, number: int) -> list[int]:
        """The tokens of a block and of all before it."""
        parent, token_ids = self.blocks[number]
        return [*([] if parent is None else self.prefix(parent)), *token_ids]


def cached_by(engines: Engines) -> set[int]:
    """The hashes in the engine's prefix cache."""
    engine = engines.engine._model
    assert engine is not None
    return {hash_number(key) for key in engine._scheduler.block_manager._block_by_hash}


def subscribe(engines: Engines, start: int = 0) -> Any:
    request = common_pb2.SubscribeKvEventsRequest(start_sequence_number=start)
    return engines.vllm.SubscribeKvEvents(request, timeout=30)


async def follow(engines: Engines, call: Any, picture: Picture) -> None:
    """Apply batches until the picture has the engine's blocks."""
    async with asyncio.timeout(10):
        while picture.blocks.keys() != cached_by(engines):
            picture.apply(await call.read())


async def test_a_subscriber_sees_blocks_enter_and_leave(engines: Engines) -> None:
    """Stored blocks have parents and tokens; evicted ones are removed; a second subscriber starts
    with the whole state."""
    call, picture = subscribe(engines), Picture()
    picture.apply(await call.read())
    prompt = [40 + number % 50 for number in range(3 * BLOCK_SIZE + 1)]
    await responses_to(engines, request_of(prompt, max_tokens=2, stream=False))
    await follow(engines, call, picture)
    longest = max((picture.prefix(number) for number in picture.blocks), key=len)
    assert longest == prompt[: 3 * BLOCK_SIZE]

    for first in range(5):  # together more than the cache holds
        other = [100 + first + number % 60 for number in range(NUM_BLOCKS * BLOCK_SIZE // 4)]
        await responses_to(engines, request_of(other, max_tokens=2, stream=False))
    await follow(engines, call, picture)
    assert picture.num_removed > 0

    second, late = subscribe(engines), Picture()
    late.apply(first_batch := await second.read())
    assert first_batch.snapshot.count == 1
    assert late.blocks == picture.blocks
    assert late.number == picture.number
    call.cancel()
    second.cancel()


async def test_a_lost_position_is_refused_so_that_the_subscriber_starts_anew(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known position is continued; one of another process, or out of the history, is not; a
    subscriber that falls behind gets DATA_LOSS."""
    call, picture = subscribe(engines), Picture()
    picture.apply(await call.read())
    began = picture.number
    for first in (50, 60):
        prompt = [first] * (4 * BLOCK_SIZE)
        await responses_to(engines, request_of(prompt, max_tokens=2, stream=False))
    await follow(engines, call, picture)
    call.cancel()

    resumed, again = subscribe(engines, began), Picture()
    again.number = began
    await follow(engines, resumed, again)
    assert again.blocks == picture.blocks
    resumed.cancel()

    for lost in (1, picture.number + 1000):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await subscribe(engines, lost).read()
        assert error.value.code() is grpc.StatusCode.OUT_OF_RANGE

    monkeypatch.setattr(block_feed, "MAX_HISTORY_EVENTS", 2)
    behind = subscribe(engines, picture.number)
    feed = engines.engine.block_feed()
    await asyncio.sleep(0)
    for first in (70, 80):
        prompt = [first] * (4 * BLOCK_SIZE)
        await responses_to(engines, request_of(prompt, max_tokens=2, stream=False))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        [batch async for batch in behind]
    assert error.value.code() is grpc.StatusCode.DATA_LOSS
    assert feed.since(feed.number) == []


def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the latest batches; numbers of another process are not in it."""
    monkeypatch.setattr(block_feed, "MAX_HISTORY_EVENTS", 10)
    feed = BlockFeed()
    before = feed.number
    for number in range(100):
        key = bytes([number])
        feed.publish([StoredBlock(key, None, array("q", [number]), 0), RemovedBlock(key)])
    assert feed.number == before + 100
    assert len(feed.since(feed.number - 5) or []) == 5
    assert feed.since(feed.number - 6) is None
    assert feed.since(feed.number + 1) is None
    assert feed.blocks() == []


async def test_a_snapshot_is_made_message_by_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one would stop all streams of the engine for seconds; changes follow the state."""
    monkeypatch.setattr(kv_events, "SNAPSHOT_BLOCKS", 2)
    num_made = 0
    make_block = kv_events._block

    def count(block: StoredBlock) -> Any:
        nonlocal num_made
        num_made += 1
        return make_block(block)

    monkeypatch.setattr(kv_events, "_block", count)
    feed, picture = BlockFeed(), Picture()
    blocks = [StoredBlock(bytes([n] * 16), None, array("q", [n]), 0) for n in range(6)]
    feed.publish(blocks)
    async with aclosing(kv_events.batches(feed, 0)) as messages:  # type: ignore[type-var]
        picture.apply(await anext(messages))
        assert num_made == 2
        feed.publish([RemovedBlock(blocks[0].block_hash)])
        for _ in range(3):
            picture.apply(await anext(messages))
    assert num_made == 6
    assert picture.blocks.keys() == {hash_number(each.block_hash) for each in blocks[1:]}
    assert picture.number == feed.number


async def test_a_drain_does_not_wait_for_subscribers(engines: Engines) -> None:
    """A subscription ends with the server, not by itself."""
    call = subscribe(engines)
    await call.read()
    began = time.monotonic()
    assert await engines.served.server.drain(timeout=20) == 0
    assert time.monotonic() - began < 5
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()


async def test_nothing_is_recorded_without_a_subscriber(engines: Engines) -> None:
    """The engine's own service pays nothing for the events."""
    await responses_to(engines, request_of([50] * 64, max_tokens=2, stream=False))
    engine = engines.engine._model
    assert engine is not None
    assert engine._scheduler.block_manager._events is None


async def test_subscribers_are_bounded(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is refused, and accepted when another one has left."""
    monkeypatch.setattr(service, "MAX_SUBSCRIBERS", 2)
    calls = [subscribe(engines) for _ in range(2)]
    for call in calls:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await subscribe(engines).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "at most 2 callers" in (refused.value.details() or "")
    calls[0].cancel()
    await eventually(lambda: engines.service._num_subscribers == 1, "a place is free")
    await (again := subscribe(engines)).read()
    for call in (calls[1], again):
        call.cancel()
    await eventually(lambda: not engines.service._num_subscribers, "all have left")
