"""The index of prefixes follows an engine's reports, whatever the size of the engine's blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2_grpc

from mesh.rpc.channel import open_channel
from mesh.rpc.server import Servicer
from orchestrator.routing.backends import cache_events
from orchestrator.routing.backends.cache_events import follow_cache
from orchestrator.routing.policies import cache_mirror
from orchestrator.routing.policies.cache_mirror import CacheMirror
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS, PrefixIndex, block_hashes
from orchestrator.routing.replicas import Replicas
from tests.helpers import eventually, serve

PROMPT = list(range(1000, 1000 + 8 * BLOCK_TOKENS))


def blocks_of(size: int) -> list[tuple[int, int | None, tuple[int, ...]]]:
    """The prompt as an engine's blocks: hash, parent, tokens."""
    starts = range(0, len(PROMPT), size)
    return [(n, n - size if n else None, tuple(PROMPT[n : n + size])) for n in starts]


@pytest.mark.parametrize("size", [8, 16, 32, 128])
def test_blocks_of_any_size_are_followed(size: int) -> None:
    """Stored blocks make the whole prompt known; evicted ends make it shorter."""
    index, hashes = PrefixIndex(), block_hashes(PROMPT)
    mirror = CacheMirror(index, "a")
    for block in blocks_of(size):
        mirror.stored(*block)
    assert index.num_cached("a", hashes) == len(hashes)
    mirror.removed(len(PROMPT) - size)
    assert index.num_cached("a", hashes) == (len(PROMPT) - size) // BLOCK_TOKENS
    mirror.stored(5, 4, (1,) * size)  # its parent was never reported
    assert index.num_blocks == (len(PROMPT) - size) // BLOCK_TOKENS
    mirror.clear()
    assert index.num_blocks == 0


def test_a_mirror_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest blocks of the engine are not followed any more."""
    monkeypatch.setattr(cache_mirror, "MAX_BLOCKS", 4)
    mirror = CacheMirror(PrefixIndex(), "a")
    for block in blocks_of(16):
        mirror.stored(*block)
    assert len(mirror._blocks) == 4


class Reporter(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Reports a prompt, then its last block's end, and loses the first subscriber."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.evict = asyncio.Event()

    async def SubscribeKvEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A state of one prompt; the first call ends at once, as for a slow subscriber."""
        self.num_calls += 1
        blocks = [
            common_pb2.KvBlock(block_hash=key, token_ids=ids, block_size=16)
            for key, _, ids in blocks_of(16)
        ]
        yield common_pb2.KvEventBatch(
            sequence_number=7,
            events=[
                common_pb2.KvCacheEvent(cleared=common_pb2.KvCacheCleared()),
                common_pb2.KvCacheEvent(stored=common_pb2.KvBlocksStored(blocks=blocks)),
            ],
        )
        if self.num_calls == 1:
            context.set_code(grpc.StatusCode.DATA_LOSS)
            return
        await self.evict.wait()
        removed = common_pb2.KvBlocksRemoved(block_hashes=[len(PROMPT) - 16])
        yield common_pb2.KvEventBatch(
            sequence_number=8, events=[common_pb2.KvCacheEvent(removed=removed)]
        )
        await asyncio.Event().wait()


async def test_an_engine_by_http_is_not_followed(no_tasks_left: None) -> None:
    """It has no such call, and each failed one would empty the replica's part of the index."""
    targets = {"vllm+http://127.0.0.1:1": False, "vllm+grpc://127.0.0.1:1": True}
    for target, is_followed in targets.items():
        replicas = Replicas([target], 60, follows_caches=True)
        async with replicas.running():
            await eventually(lambda: bool(replicas._members), "it is known")  # noqa: B023
            [member] = replicas._members.values()
            assert (member.following is not None) == is_followed


async def test_an_engines_reports_reach_the_index(
    monkeypatch: pytest.MonkeyPatch, no_tasks_left: None
) -> None:
    """A subscription that is lost starts anew."""
    monkeypatch.setattr(cache_events, "RETRY_SECONDS", 0.01)
    index, hashes, reporter = PrefixIndex(), block_hashes(PROMPT), Reporter()
    register = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server
    async with serve(Servicer("vllm.grpc.engine.VllmEngine", register, reporter)) as served:
        following = asyncio.create_task(follow_cache(served.channel, CacheMirror(index, "a")))
        await eventually(lambda: reporter.num_calls == 2, "it subscribes again")
        await eventually(lambda: index.num_cached("a", hashes) == 8, "the prompt is known")
        reporter.evict.set()
        await eventually(lambda: index.num_cached("a", hashes) == 7, "the end is evicted")
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def test_an_engine_that_is_replaced_by_one_with_reports_is_followed(
    monkeypatch: pytest.MonkeyPatch, no_tasks_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then nothing is known of its cache, and what routing has learned of it is kept."""
    monkeypatch.setattr(cache_events, "UNIMPLEMENTED_SECONDS", 0.02)
    caplog.set_level("INFO")
    index, hashes, reporter = PrefixIndex(), block_hashes(PROMPT), Reporter()
    index.add("a", hashes[:2])
    register = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server
    async with AsyncExitStack() as stack:
        async with serve() as without:
            channel = open_channel(without.address)
            stack.push_async_callback(channel.close)
            following = asyncio.create_task(follow_cache(channel, CacheMirror(index, "a")))
            stack.callback(following.cancel)
            await eventually(lambda: "engine reports no cache events" in caplog.text, "it is asked")
            await asyncio.sleep(0.1)
            assert index.num_cached("a", hashes) == 2
            assert caplog.text.count("engine reports no cache events") == 1
        monkeypatch.setattr(cache_events, "RETRY_SECONDS", 0.02)
        servicer = Servicer("vllm.grpc.engine.VllmEngine", register, reporter)
        await stack.enter_async_context(serve(servicer, listen=without.address))
        await eventually(lambda: index.num_cached("a", hashes) == 8, "the prompt is known", 20)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
