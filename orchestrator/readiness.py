"""Whether the orchestrator can serve: some model has a ready replica and a ready tokenizer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mesh.errors import MeshError
from mesh.process.lifecycle import SetReady
from orchestrator.clients.tokenizer import TokenizerUnusable
from orchestrator.clients.tokenizers import Tokenizers, TokenizerUpstream
from orchestrator.routing.replicas import Replicas

logger = logging.getLogger("orchestrator.readiness")

RETRY_SECONDS = 0.2
"""Delay before a lost tokenizer is contacted again."""

UNUSABLE_RETRY_SECONDS = 5.0
"""Delay before files that could not be loaded are downloaded again."""

RECHECK_SECONDS = 2.0
"""Interval at which the tokenizers are asked again while an engine is refused: one of several
replicas of a tokenizer may have been replaced without a change of health."""

Notify = Callable[[], Awaitable[None]]


class Readiness:
    """Watches the health of the tokenizers and of the replicas."""

    def __init__(self, tokenizers: Tokenizers, replicas: Replicas) -> None:
        """The caller owns both."""
        self._tokenizers = tokenizers
        self._replicas = replicas
        self._serving: set[str] = set()
        """Targets of the tokenizers that serve."""

    @property
    def ready(self) -> bool:
        """Whether at least one model can be used now, or woken by a request."""
        usable = set(self._replicas.models)
        if self._replicas.waking.holds:
            usable |= self._replicas.sleeping.keys()
        return any(self._tokenizers.target_of(model) in self._serving for model in usable)

    async def watch(self, set_ready: SetReady) -> None:
        """Calls `set_ready` at every change, until cancelled."""
        lock = asyncio.Lock()

        async def notify() -> None:
            # One call at a time, so that the last one has the newest state.
            async with lock:
                await set_ready(self.ready)

        async with asyncio.TaskGroup() as tasks:
            for upstream in self._tokenizers.upstreams:
                watching = self._watch_tokenizer(upstream, notify)
                tasks.create_task(watching, name=f"watch {upstream.target}")
            tasks.create_task(self._watch_replicas(notify), name="watch replicas")
            tasks.create_task(self._recheck(notify), name="recheck tokenizers")

    async def _watch_replicas(self, notify: Notify) -> None:
        while True:
            changed = self._replicas.next_change()
            await notify()
            await changed.wait()

    async def _recheck(self, notify: Notify) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            if not self._replicas.problems:
                continue
            for upstream in self._tokenizers.upstreams:
                try:
                    await upstream.client.refresh()
                except MeshError as error:
                    logger.debug("tokenizer not checked", extra={"error": str(error)})
            self._replicas.check_agreement()
            await notify()

    async def _watch_tokenizer(self, upstream: TokenizerUpstream, notify: Notify) -> None:
        while True:
            delay = RETRY_SECONDS
            try:
                await self._follow(upstream, notify)
            except TokenizerUnusable as error:
                delay = UNUSABLE_RETRY_SECONDS
                logger.error(
                    "tokenizer files cannot be loaded",
                    extra={"target": upstream.target, "error": error.message},
                )
            except MeshError as error:
                logger.debug("tokenizer lost", extra={"error": str(error)})
            self._serving.discard(upstream.target)
            await notify()
            await asyncio.sleep(delay)

    async def _follow(self, upstream: TokenizerUpstream, notify: Notify) -> None:
        """Follows the readiness of a tokenizer's replicas. Raises MeshError."""
        channel = upstream.channel
        while True:
            changed = channel.next_change()
            if channel.is_ready:
                # Before the first request needs the files.
                await upstream.client.refresh()
                self._replicas.check_agreement()
                self._serving.add(upstream.target)
            else:
                self._serving.discard(upstream.target)
            await notify()
            await changed.wait()
