"""Rollouts of the orchestrator while DNS is late, silent or wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from tests.rollout.deployment import Deployment
from tests.rollout.name_server import NameServer

LATE_SECONDS = 30.0
OUTAGE_SECONDS = 10.0
GONE = ("127.99.0.1", "127.99.0.2")
"""Addresses of pods that are gone: the first refuses connections, the second does not answer."""

Faults = list[tuple[str, Callable[[], Awaitable[object]]]]


def faults(names: NameServer, orchestrator: Deployment, port: int) -> Faults:
    """What happens to DNS, each during a restart of the orchestrator or without any change."""
    return [
        ("answers 30 s late, restart", partial(_late, names, orchestrator)),
        ("no answers for 10 s, no change", partial(_outage, names, "silent", None)),
        ("no answers for 10 s, restart", partial(_outage, names, "silent", orchestrator)),
        ("NXDOMAIN for 10 s, no change", partial(_outage, names, "unknown", None)),
        ("NXDOMAIN for 10 s, restart", partial(_outage, names, "unknown", orchestrator)),
        ("records of pods that are gone, restart", partial(_gone, names, orchestrator, port)),
        ("records disappear 10 s before the pod, restart", partial(_early, names, orchestrator)),
    ]


async def _late(names: NameServer, orchestrator: Deployment) -> None:
    async with _late_by(names, LATE_SECONDS):
        await orchestrator.restart()
        await asyncio.sleep(LATE_SECONDS)


@asynccontextmanager
async def _late_by(names: NameServer, seconds: float) -> AsyncIterator[None]:
    usual, names.late_seconds = names.late_seconds, seconds
    try:
        yield
    finally:
        names.late_seconds = usual


async def _outage(names: NameServer, kind: str, orchestrator: Deployment | None) -> None:
    setattr(names, kind, True)
    # A new orchestrator is ready only when it can resolve its own callees.
    restarting = None if orchestrator is None else asyncio.create_task(orchestrator.restart())
    try:
        await asyncio.sleep(OUTAGE_SECONDS)
    finally:
        setattr(names, kind, False)
    if restarting is not None:
        await restarting


async def _gone(names: NameServer, orchestrator: Deployment, port: int) -> None:
    with _unanswered(GONE[1], port):
        orchestrator.extra_addresses = GONE
        try:
            await orchestrator.restart()
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            orchestrator.extra_addresses = ()


@contextmanager
def _unanswered(host: str, port: int) -> Iterator[None]:
    """Nothing answers at HOST:PORT, not even with a reset: the queue of connections is full."""
    with socket.create_server((host, port), backlog=0) as server:
        queued = [socket.socket() for _ in range(2)]
        for each in queued:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        try:
            yield
        finally:
            for each in queued:
                each.close()


async def _early(names: NameServer, orchestrator: Deployment) -> None:
    names.publish(orchestrator.name, ())
    await asyncio.sleep(names.late_seconds + OUTAGE_SECONDS)
    await orchestrator.restart()
