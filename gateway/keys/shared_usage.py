"""What keys use at this gateway, for the other gateways, and what they use there.

Each gateway applies the limits of a key to the sum. It knows the use elsewhere up to
`REPORT_SECONDS` and a network hop late, and no request waits for another gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence

from gateway.keys.key_ring import KeyRing
from gateway.keys.rate_limiter import KeyUsage
from mesh.context import is_key_name

REPORT_SECONDS = 0.05
"""Least time between two reports to one gateway."""

MAX_NAMES = 65_536
"""Most keys of one gateway that are remembered; further ones do not count."""


class _Reports:
    """What one gateway has reported."""

    def __init__(self) -> None:
        self.has_all = False
        """Whether every key that was in use when the reports began has been named."""
        self._last: dict[str, KeyUsage] = {}

    @property
    def names(self) -> Iterable[str]:
        """The keys of the reports."""
        return self._last

    def next(self, usage: KeyUsage) -> tuple[KeyUsage, KeyUsage] | None:
        """The use to count from and the new one; None: it does not count."""
        name = usage.name
        before = self._last.get(name)
        if before is None:
            if len(self._last) >= MAX_NAMES or not is_key_name(name):
                return None
            # What was used before this gateway knew of the other is not charged again.
            before = KeyUsage(name) if self.has_all else usage
        elif usage.num_requests < before.num_requests:
            # The key was removed there and added again: its totals began again.
            before = KeyUsage(name)
        self._last[name] = usage
        return before, usage


class SharedUsage:
    """For one event loop."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys
        self._reports: dict[str, _Reports] = {}
        """By the gateway that sent them."""

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

    def received(self, gateway: str, usages: Iterable[KeyUsage], *, more: bool = False) -> None:
        """Apply a report of another gateway, named by its address; `more`: it is not complete."""
        reports = self._reports.setdefault(gateway, _Reports())
        for usage in usages:
            rate_limiter = self._keys.rate_limiter_of(usage.name)
            change = reports.next(usage)
            if rate_limiter is not None and change is not None:
                rate_limiter.used_elsewhere(gateway, *change)
        reports.has_all = reports.has_all or not more

    def forget(self, gateway: str) -> None:
        """Requests at this gateway are unknown from now on, and do not count."""
        reports = self._reports.pop(gateway, None)
        for name in () if reports is None else reports.names:
            rate_limiter = self._keys.rate_limiter_of(name)
            if rate_limiter is not None:
                rate_limiter.forget(gateway)
