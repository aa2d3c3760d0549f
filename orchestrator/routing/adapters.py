"""LoRA adapters of the replicas: loading on all of them, changes, and their place in routing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Protocol

from mesh.errors import ErrorKind, MeshError, invalid
from orchestrator.generation import ModelInfo
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS

if TYPE_CHECKING:
    from orchestrator.routing.replica import Replica

logger = logging.getLogger("orchestrator.routing.adapters")

FOLLOW_SECONDS = 5.0
"""Interval of the questions for the adapters of engines that may load others: another orchestrator
may have asked them to."""


class Served(Protocol):
    """What is needed of `Replicas`."""

    @property
    def ready(self) -> list[Replica]: ...

    @property
    def models(self) -> dict[str, ModelInfo]: ...


def routed_ids(model: ModelInfo, token_ids: Sequence[int]) -> Sequence[int]:
    """The ids by which routing finds a prompt in prefix caches.

    An adapter's prompt begins with a block that no other model's has, because the keys and values
    that an engine has cached for another model are of no use to it.
    """
    if not model.base:
        return token_ids
    mark = int(model.model_sha256[:7] or "0", 16)
    return [*[mark] * BLOCK_TOKENS, *token_ids]


async def follow_adapters(replicas: Served) -> None:
    """Asks engines that may load adapters for them, until cancelled."""
    while True:
        await asyncio.sleep(FOLLOW_SECONDS)
        for replica in replicas.ready:
            if replica.adapters.allows_loading:
                await _refresh(replica)


async def _refresh(replica: Replica) -> None:
    try:
        await replica.refresh_adapters()
    except MeshError as error:
        logger.debug("adapters unknown", extra={"error": str(error)})


async def load_adapter(replicas: Served, model: ModelInfo, name: str, path: str) -> int:
    """Loads an adapter on all replicas of a model, or on none; returns their number.

    Raises MeshError: the first refusal of a replica.
    """
    if name in replicas.models:
        raise invalid("lora_name", f"lora_name {name!r:.200} is already served")
    able = [
        replica
        for replica in replicas.ready
        if replica.serves(model) and replica.adapters.allows_loading
    ]
    if not able:
        raise MeshError(
            ErrorKind.UNIMPLEMENTED,
            f"no engine of {model.name!r} may load LoRA adapters; INFERENCE_ALLOW_RUNTIME_LORA "
            "allows it",
        )
    errors = await _on_all(able, [replica.load_adapter(name, path) for replica in able])
    if errors:
        loaded = [replica for replica in able if replica not in errors]
        await _on_all(loaded, [replica.unload_adapter(name) for replica in loaded])
        raise next(iter(errors.values()))
    await asyncio.gather(*map(_refresh, able))
    return len(able)


async def unload_adapter(replicas: Served, name: str) -> int:
    """Unloads an adapter from all replicas that have it; returns their number. Raises MeshError."""
    having = [
        replica
        for replica in replicas.ready
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
