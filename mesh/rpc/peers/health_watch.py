"""Follows the health of one peer continuously (gRPC's health checking protocol, `Watch`)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import MeshError

logger = logging.getLogger("mesh.rpc.peers")

RETRY_SECONDS = 0.2
"""Least time between the starts of two watches of one peer."""

CONFIRM_SECONDS = 1.0
"""Timeout of a health check after a failed call; enough for a reconnection."""


class Health(Enum):
    """What is known of a peer."""

    UNREACHABLE = "unreachable"
    NOT_SERVING = "not serving"
    SERVING = "serving"


Update = Callable[[Health], Awaitable[None]]


class HealthWatch:
    """Reports each change of the health of one service at one peer."""

    def __init__(self, channel: grpc.aio.Channel, service: str, update: Update) -> None:
        """`update` is awaited before the next change is read; what it raises ends that watch."""
        self._stub: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
        self._request = health_pb2.HealthCheckRequest(service=service)
        self._update = update
        self._call: Any = None

    async def run(self, name: str) -> None:
        """Watch until cancelled; a watch that ends is started again. `name` is for the log."""
        while True:
            began = time.monotonic()
            try:
                await self._watch()
            except (grpc.aio.AioRpcError, MeshError) as error:
                logger.debug("health watch failed", extra={"address": name, "error": str(error)})
            except Exception:
                # The watch must continue, or the peer would never become ready again.
                logger.exception("unexpected error in health watch", extra={"address": name})
            await self._update(Health.UNREACHABLE)
            # A connection that ends at its greatest age is replaced at once.
            if time.monotonic() - began < RETRY_SECONDS:
                await asyncio.sleep(RETRY_SECONDS)

    async def _watch(self) -> None:
        """Watch once, until the call ends. Raises AioRpcError, and what `update` raises."""
        call = self._call = self._stub.Watch(self._request, wait_for_ready=True)
        try:
            async for response in call:
                await self._update(_health(response))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # `restart` has cancelled the call.
        finally:
            call.cancel()

    def restart(self) -> None:
        """Watch anew: a watch sends changes only, a new one sends the present state first."""
        if self._call is not None:
            self._call.cancel()

    async def check(self) -> Health:
        """The health now, without waiting for the watch."""
        try:
            return _health(
                await self._stub.Check(self._request, timeout=CONFIRM_SECONDS, wait_for_ready=True)
            )
        except grpc.aio.AioRpcError as error:
            logger.debug("health check failed", extra={"error": error.details()})
            return Health.UNREACHABLE


def _health(response: health_pb2.HealthCheckResponse) -> Health:
    serving = response.status == health_pb2.HealthCheckResponse.SERVING
    return Health.SERVING if serving else Health.NOT_SERVING
