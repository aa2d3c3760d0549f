"""The changes of the prefix cache as `KvEventBatch` messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

from smg_grpc_proto.generated import common_pb2

from inference.engine.block_feed import BlockBatch, BlockFeed
from inference.scheduler.block_events import BlockEvent, StoredBlock

SNAPSHOT_BLOCKS = 256
"""Blocks in a message of a snapshot. Making a message takes a few milliseconds, in which no other
stream of the engine can send."""


class PositionLostError(Exception):
    """The history has no longer what follows a position; the subscriber must start anew."""


async def batches(feed: BlockFeed, position: int) -> AsyncIterator[common_pb2.KvEventBatch]:
    """Yield what follows the batch `position`; after 0, the state first.

    Raises PositionLostError if the subscriber is too slow, or its position is of another process.
    """
    if not position:
        position = feed.number
        for message in _snapshot(feed):
            yield message
    while True:
        missed = feed.since(position)
        if missed is None:
            raise PositionLostError
        for batch in missed:
            position = batch.number
            yield _batch_message(batch)
        await feed.wait_after(position)


def _snapshot(feed: BlockFeed) -> Iterator[common_pb2.KvEventBatch]:
    """The whole state, numbered so that the last message has the number of the state.

    Each message is made when the one before it has been sent.
    """
    blocks = feed.blocks()
    parts = [blocks[i : i + SNAPSHOT_BLOCKS] for i in range(0, len(blocks), SNAPSHOT_BLOCKS)]
    parts = parts or [[]]
    number = feed.number - len(parts)
    for index, part in enumerate(parts):
        events = [] if index else [common_pb2.KvCacheEvent(cleared=common_pb2.KvCacheCleared())]
        events += _events(part)
        chunk = common_pb2.KvSnapshotChunk(
            index=index,
            count=len(parts),
            blocks=len(blocks),
            unknown_before=int(feed.has_unknown_blocks),
        )
        number += 1
        yield common_pb2.KvEventBatch(sequence_number=number, events=events, snapshot=chunk)


def _batch_message(batch: BlockBatch) -> common_pb2.KvEventBatch:
    return common_pb2.KvEventBatch(
        sequence_number=batch.number, timestamp=batch.time, events=_events(batch.events)
    )


def _events(changes: Iterable[BlockEvent]) -> list[common_pb2.KvCacheEvent]:
    """Consecutive blocks of one sequence, and consecutive removed blocks, share an event."""
    events: list[common_pb2.KvCacheEvent] = []
    last: BlockEvent | None = None
    for change in changes:
        if isinstance(change, StoredBlock):
            if not (isinstance(last, StoredBlock) and change.parent == last.block_hash):
                stored = common_pb2.KvBlocksStored(parent_block_hash=_number_of(change.parent))
                events.append(common_pb2.KvCacheEvent(stored=stored))
            events[-1].stored.blocks.append(_block(change))
        else:
            if last is None or isinstance(last, StoredBlock):
                events.append(common_pb2.KvCacheEvent(removed=common_pb2.KvBlocksRemoved()))
            events[-1].removed.block_hashes.append(hash_number(change.block_hash))
        last = change
    return events


def _block(block: StoredBlock) -> common_pb2.KvBlock:
    token_ids: Sequence[int] = block.token_ids
    return common_pb2.KvBlock(
        block_hash=hash_number(block.block_hash), token_ids=token_ids, block_size=len(token_ids)
    )


def _number_of(parent: bytes | None) -> int | None:
    return None if parent is None else hash_number(parent)


def hash_number(block_hash: bytes) -> int:
    """The first 64 bits of a hash, as a signed integer."""
    return int.from_bytes(block_hash[:8], "big", signed=True)
