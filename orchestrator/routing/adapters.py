"""LoRA adapters of the replicas: the same ones on all of a model, and their place in routing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mesh.context import current_request, use_request
from mesh.errors import ErrorKind, MeshError, invalid
from orchestrator.generation import ModelInfo
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS

if TYPE_CHECKING:
    from orchestrator.routing.replica import Replica

logger = logging.getLogger("orchestrator.routing.adapters")

FOLLOW_SECONDS = 5.0
"""Interval of the questions for the adapters of engines that may load others: another orchestrator
may have asked them to."""

RETRY_SECONDS = 60.0
"""Delay before an adapter is copied again to a replica that has refused it."""

STOP_SECONDS = 5.0

_UNCERTAIN = (ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE, ErrorKind.CANCELLED, ErrorKind.INTERNAL)
"""Failures after which a replica may have loaded the adapter."""


class Served(Protocol):
    """What is needed of `Replicas`."""

    @property
    def ready(self) -> list[Replica]: ...

    @property
    def models(self) -> Mapping[str, ModelInfo]: ...


def routed_ids(model: ModelInfo, token_ids: Sequence[int]) -> Sequence[int]:
    """The ids by which routing finds a prompt in prefix caches.

    An adapter's prompt begins with a block that no other model's has, because the keys and values
    that an engine has cached for another model are of no use to it.
    """
    if not model.base:
        return token_ids
    mark = int(model.model_sha256[:7] or "0", 16)
    return [*[mark] * BLOCK_TOKENS, *token_ids]


class AdapterManager:
    """Loads and unloads adapters on all replicas of a model, and copies them to new replicas.

    The engines have the state: any orchestrator can continue what another one has begun.
    """

    def __init__(self, replicas: Served) -> None:
        self._replicas = replicas
        self._busy: set[str] = set()
        """Names of adapters that are being loaded or unloaded."""
        self._changes: set[asyncio.Task[int]] = set()
        self._copies: dict[_Copy, asyncio.Task[None]] = {}
        self._refused: dict[_Copy, float] = {}
        """When a replica has refused a copy, in `time.monotonic()` seconds."""

    async def load(self, model: ModelInfo, name: str, path: str) -> int:
        """Loads an adapter on all replicas of a model, or on none; returns their number.

        It continues if the caller is cancelled. Raises MeshError: the first refusal of a replica.
        """
        return await self._change(name, self._load(model, name, path))

    async def unload(self, name: str) -> int:
        """Unloads an adapter from all replicas that have it; returns their number.

        It continues if the caller is cancelled. Raises MeshError.
        """
        return await self._change(name, self._unload(name))

    async def follow(self) -> None:
        """Asks engines that may load adapters for them, and copies missing ones, until cancelled.

        At the end, loads and unloads that are running have `STOP_SECONDS` left.
        """
        try:
            while True:
                await asyncio.sleep(FOLLOW_SECONDS)
                await asyncio.gather(*map(_refresh, self._able))
                self._copy_missing()
        finally:
            if self._changes:
                await asyncio.wait(self._changes, timeout=STOP_SECONDS)
            left = [*self._copies.values(), *self._changes]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    @property
    def _able(self) -> list[Replica]:
        return [each for each in self._replicas.ready if each.adapters.allows_loading]

    async def _change(self, name: str, change: Coroutine[object, object, int]) -> int:
        """Runs one change of an adapter to its end, whether or not the caller waits for it."""
        if name in self._busy:
            change.close()
            message = f"lora_name {name!r:.200} is being loaded or unloaded"
            raise MeshError(ErrorKind.OVERLOADED, message, param="lora_name", retry_after=1.0)
        self._busy.add(name)
        task = asyncio.create_task(_without_deadline(change), name=f"change adapter {name:.80}")
        self._changes.add(task)

        def ended(task: asyncio.Task[int]) -> None:
            self._busy.discard(name)
            self._changes.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # Also read where the caller has gone, so that asyncio does not report it.
                logger.info("adapter not changed", extra={"adapter": name, "error": str(error)})

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    async def _load(self, model: ModelInfo, name: str, path: str) -> int:
        if name in self._replicas.models:
            raise invalid("lora_name", f"lora_name {name!r:.200} is already served")
        able = [replica for replica in self._able if replica.serves(model)]
        if not able:
            raise MeshError(
                ErrorKind.UNIMPLEMENTED,
                f"no engine of {model.name!r} may load LoRA adapters; "
                "INFERENCE_ALLOW_RUNTIME_LORA allows it",
            )
        errors = await _on_all(able, [replica.load_adapter(name, path) for replica in able])
        if errors:
            perhaps = [
                each for each in able if each not in errors or errors[each].kind in _UNCERTAIN
            ]
            await _on_all(perhaps, [replica.unload_adapter(name) for replica in perhaps])
            raise next(iter(errors.values()))
        await asyncio.gather(*map(_refresh, able))
        return len(able)

    async def _unload(self, name: str) -> int:
        having = [
            replica
            for replica in self._replicas.ready
            if any(each.name == name for each in replica.adapters.models)
        ]
        if not having:
            raise MeshError(
                ErrorKind.MODEL_NOT_FOUND,
                f"no LoRA adapter {name!r:.200} is loaded",
                param="lora_name",
            )
        errors = await _on_all(having, [replica.unload_adapter(name) for replica in having])
        await asyncio.gather(*map(_refresh, having))
        if errors:
            raise next(iter(errors.values()))
        return len(having)

    def _copy_missing(self) -> None:
        """Starts to load on each replica what another one of its model has loaded at run time."""
        now = time.monotonic()
        self._refused = {copy: at for copy, at in self._refused.items() if now - at < RETRY_SECONDS}
        able = self._able
        for source in able:
            for adapter, path in zip(source.adapters.models, source.adapters.paths, strict=True):
                for target in able:
                    copy = _Copy(target, adapter, path)
                    if path and self._is_wanted(copy, source):
                        task = asyncio.create_task(self._copy(copy), name="copy adapter")
                        self._copies[copy] = task

    def _is_wanted(self, copy: _Copy, source: Replica) -> bool:
        target, adapter, _ = copy
        return (
            adapter.name not in self._busy
            and copy not in self._copies
            and copy not in self._refused
            and source.model is not None
            and target.serves(source.model)
            and not any(each.name == adapter.name for each in target.models)
        )

    async def _copy(self, copy: _Copy) -> None:
        """Loads an adapter on a replica, and unloads it again if no other has it any more."""
        target, adapter, path = copy
        fields = {"adapter": adapter.name, "address": target.address}
        try:
            await target.load_adapter(adapter.name, path, adapter.model_sha256)
            others = [each for each in self._able if each is not target]
            await asyncio.gather(*map(_refresh, others))
            if any(adapter in each.adapters.models for each in others):
                logger.info("adapter copied to replica", extra=fields)
            else:
                await target.unload_adapter(adapter.name)
            await _refresh(target)
        except MeshError as error:
            if _is_there(error):  # another orchestrator's load was faster, or still runs
                logger.debug("adapter not copied", extra={**fields, "error": error.message})
                return
            self._refused[copy] = time.monotonic()
            logger.warning("adapter not copied", extra={**fields, "error": error.message})
        finally:
            del self._copies[copy]


class _Copy(NamedTuple):
    """An adapter that a replica lacks."""

    target: Replica
    adapter: ModelInfo
    path: str


def _is_there(error: MeshError) -> bool:
    """Whether an engine refuses an adapter because it has loaded or is loading one of this name."""
    return error.param == "lora_name" and error.message.endswith(" is already served")


async def _without_deadline(change: Coroutine[object, object, int]) -> int:
    """Awaits a change, in a task; calls have their own timeouts, so that a load can be undone."""
    request = current_request()
    if request is None:
        return await change
    with use_request(replace(request, deadline=None)):
        return await change


async def _refresh(replica: Replica) -> None:
    try:
        await replica.refresh_adapters()
    except MeshError as error:
        logger.debug("adapters unknown", extra={"error": str(error)})


async def _on_all(
    replicas: Sequence[Replica], calls: Sequence[Coroutine[object, object, None]]
) -> dict[Replica, MeshError]:
    """Awaits one call for each replica; returns the errors of those that failed."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors: dict[Replica, MeshError] = {}
    for replica, result in zip(replicas, results, strict=True):
        if isinstance(result, MeshError):
            errors[replica] = result
        elif isinstance(result, BaseException):
            raise result
    return errors
