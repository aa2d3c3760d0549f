"""What keys use at this gateway, for the other gateways, and what they use there.

Each gateway applies the limits of a key to the sum. It knows the use elsewhere up to
`REPORT_SECONDS` and a network hop late, and no request waits for another gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from gateway.keys.key_ring import KeyRing
from gateway.keys.rate_limiter import KeyUsage

REPORT_SECONDS = 0.05
"""Least time between two reports to one gateway."""


class SharedUsage:
    """For one event loop."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._seen: dict[str, dict[str, KeyUsage]] = {}
        """The last report of each key, by the gateway that sent it."""

    async def reports(self) -> AsyncGenerator[Sequence[KeyUsage]]:
        """First all keys with limits that were used, then those that changed, until closed."""
        sent: dict[str, KeyUsage] = {}
        is_first = True
        with self._keys.changes() as changes:
            changes.names |= self._keys.used()
            while True:
                usages = [each for each in map(self._keys.usage, changes.take()) if each]
                # Tokens are counted without notice, while requests run.
                changes.names |= {each.name for each in usages if each.num_running}
                news = [each for each in usages if sent.get(each.name) != each]
                sent |= {each.name: each for each in news}
                if news or is_first:
                    yield news
                    is_first = False
                await asyncio.sleep(REPORT_SECONDS)
                await changes.wait()

    def received(self, gateway: str, usages: Sequence[KeyUsage]) -> None:
        """Apply a report of another gateway, named by its address."""
        is_first = gateway not in self._seen
        seen = self._seen.setdefault(gateway, {})
        for usage in usages:
            # What was used before this gateway knew of the other is not charged again.
            before = seen.get(usage.name, usage if is_first else KeyUsage(usage.name))
            if usage.num_requests < before.num_requests:
                # The key was removed there and added again: its totals began again.
                before = KeyUsage(usage.name)
            seen[usage.name] = usage
            rate_limiter = self._keys.rate_limiter_of(usage.name)
            if rate_limiter is not None:
                rate_limiter.used_elsewhere(gateway, before, usage)

    def forget(self, gateway: str) -> None:
        """Requests at this gateway are unknown from now on, and do not count."""
        for name in self._seen.pop(gateway, {}):
            rate_limiter = self._keys.rate_limiter_of(name)
            if rate_limiter is not None:
                rate_limiter.forget(gateway)
