"""The changes of an engine's prefix cache, by `VllmEngine.SubscribeKvEvents`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import grpc.aio
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream

logger = logging.getLogger("orchestrator.routing.cache_events")

RETRY_SECONDS = 2.0
"""Delay before a subscription that ended is opened again."""


UNIMPLEMENTED_SECONDS = 30.0
"""The same, for an engine that does not report the changes: its next version may."""


class CacheChanges(Protocol):
    """What takes the changes of one engine's prefix cache, in the engine's names of blocks."""

    def stored(self, block_hash: int, parent: int | None, token_ids: tuple[int, ...]) -> None:
        """A block was stored after the block `parent`; None: at the beginning of a prompt."""

    def removed(self, block_hash: int) -> None:
        """A block was evicted."""

    def clear(self) -> None:
        """Nothing is known of the cache any more."""


async def follow_cache(channel: grpc.aio.Channel, changes: CacheChanges) -> None:
    """Passes on the changes, if the engine reports them, until cancelled.

    Each subscription begins with the engine's state, so one that was too slow starts anew.
    """
    stub = vllm_engine_pb2_grpc.VllmEngineStub(channel)
    level = logging.INFO
    while True:
        try:
            request = common_pb2.SubscribeKvEventsRequest()
            async with open_stream(stub.SubscribeKvEvents, request) as batches:
                async for batch in batches:
                    for event in batch.events:
                        _apply(event, changes)
        except MeshError as error:
            if error.kind is ErrorKind.UNIMPLEMENTED:
                # What is known of the cache is not from reports, and stays.
                logger.log(level, "engine reports no cache events")
                level = logging.DEBUG
                await asyncio.sleep(UNIMPLEMENTED_SECONDS)
                continue
            logger.debug("subscription to cache events ended", extra={"error": str(error)})
        changes.clear()
        await asyncio.sleep(RETRY_SECONDS)


def _apply(event: Any, changes: CacheChanges) -> None:
    kind = event.WhichOneof("data")
    if kind == "cleared":
        changes.clear()
    elif kind == "removed":
        for block_hash in event.removed.block_hashes:
            changes.removed(block_hash)
    elif kind == "stored" and not event.stored.lora_name:
        stored = event.stored
        parent = stored.parent_block_hash if stored.HasField("parent_block_hash") else None
        for block in stored.blocks:
            changes.stored(block.block_hash, parent, tuple(block.token_ids))
            parent = block.block_hash
