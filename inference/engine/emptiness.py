"""Waiting until no call of a kind is live, for the drain."""

from __future__ import annotations

import asyncio


class Emptiness:
    """Whether a collection is empty. For one event loop; its owner reports each change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._event.set()

    def update(self, *, is_empty: bool) -> None:
        """Record a change; wakes the waiting tasks if the collection is empty now."""
        if is_empty:
            self._event.set()
        else:
            self._event.clear()

    async def wait(self, timeout: float) -> bool:
        """Wait until the collection is empty; False if it still is not after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
