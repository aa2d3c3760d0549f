"""Health of engines that offer no lasting watch: asked once a second."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import suppress

from orchestrator.routing.backends.backend import CHECK_SECONDS

POLL_SECONDS = 1.0
"""Interval of the health checks."""


class PolledHealth(ABC):
    """The part of a backend that follows the health by repeated checks."""

    def __init__(self) -> None:
        self._recheck = asyncio.Event()

    async def health(self) -> AsyncGenerator[bool, None]:
        """The state now and at each check."""
        while True:
            self._recheck.clear()
            yield await self.check(CHECK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._recheck.wait()

    def recheck(self) -> None:
        """Makes `health` check at once."""
        self._recheck.set()

    @abstractmethod
    async def check(self, timeout: float) -> bool:
        """Whether the engine is serving, within `timeout` seconds. Raises MeshError."""
