"""The state and the latest changes of the prefix cache, for any number of subscribers.

Lives on the event loop. A subscriber is a position in the history, so a slow one costs no memory:
it falls out of the history, and starts again from the state.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from inference.scheduler.block_events import BlockEvent, StoredBlock

MAX_HISTORY_EVENTS = 16_384
"""Stored and removed blocks that the history has at most."""

_NUMBERS_PER_SECOND = 1 << 20


class BlockBatch(NamedTuple):
    """The changes of one step."""

    number: int
    """Consecutive. Another process begins with a higher number than this one will reach."""
    time: float
    """Seconds since 1970."""
    events: Sequence[BlockEvent]


class BlockFeed:
    """Keeps the blocks in the prefix cache, in the order of their positions, and a history."""

    def __init__(self, *, has_unknown_blocks: bool = False) -> None:
        """`has_unknown_blocks`: the cache had blocks before its changes were recorded."""
        self.has_unknown_blocks = has_unknown_blocks
        self.number = int(time.time()) * _NUMBERS_PER_SECOND
        """Number of the last batch."""
        self._blocks: dict[bytes, StoredBlock] = {}
        self._history: deque[BlockBatch] = deque()
        self._num_history_events = 0
        self._changed = asyncio.Event()

    def publish(self, events: Sequence[BlockEvent]) -> None:
        """Apply the changes of a step and wake the subscribers."""
        for event in events:
            if isinstance(event, StoredBlock):
                self._blocks[event.block_hash] = event
            else:
                self._blocks.pop(event.block_hash, None)
        self.number += 1
        self._history.append(BlockBatch(self.number, time.time(), events))
        self._num_history_events += len(events)
        while self._num_history_events > MAX_HISTORY_EVENTS:
            self._num_history_events -= len(self._history.popleft().events)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def blocks(self) -> list[StoredBlock]:
        """All known blocks of the prefix cache, each after the block before it."""
        return sorted(self._blocks.values(), key=lambda block: block.place)

    def since(self, number: int) -> list[BlockBatch] | None:
        """The batches after this number; None if the history does not have all of them."""
        missing = self.number - number
        if not 0 <= missing <= len(self._history):
            return None
        return [self._history[place] for place in range(-missing, 0)]

    async def wait_after(self, number: int) -> None:
        """Wait until there is a batch after this number."""
        while self.number <= number:
            await self._changed.wait()
