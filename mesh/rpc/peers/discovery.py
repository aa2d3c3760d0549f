"""The addresses that names resolve to, looked up periodically and whenever a peer is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from mesh.rpc.peers.resolver import Resolve, resolve

logger = logging.getLogger("mesh.rpc.peers")

URGENT_SECONDS = 0.5
"""Interval of the lookups after a loss, and the least time between two lookups."""

URGENT_PERIOD_SECONDS = 60.0
"""Time after a loss in which lookups are urgent: a name service may answer late."""

GRACE_SECONDS = 60.0
"""Time for which a name may be unknown before that is logged as a warning: at a first install the
services start before their callees have addresses."""


class Discovery:
    """Addresses by name. A name that cannot be resolved keeps its previous addresses."""

    def __init__(
        self, targets: Sequence[str], refresh_seconds: float, resolve: Resolve = resolve
    ) -> None:
        """`targets` are HOST:PORT; `refresh_seconds` is the interval of the lookups."""
        self._targets = targets
        self._refresh_seconds = refresh_seconds
        self._resolve = resolve
        self._answers: dict[str, set[str]] = {}
        self._failures: dict[str, _Failure] = {}
        self._wanted = asyncio.Event()
        self._urgent_until = time.monotonic() + URGENT_PERIOD_SECONDS

    @property
    def addresses(self) -> Mapping[str, str]:
        """The target by each of its addresses (HOST:PORT), as of the last lookups."""
        return {
            address: target
            for target in self._targets
            for address in sorted(self._answers.get(target, ()))
        }

    @property
    def failing(self) -> bool:
        """Whether the last lookup of some name failed, so that its addresses may be outdated."""
        return bool(self._failures)

    def hurry(self) -> None:
        """Look up as soon as possible, and often for a while: a peer was lost or drains."""
        self._urgent_until = time.monotonic() + URGENT_PERIOD_SECONDS
        self._wanted.set()

    async def run(self, on_change: Callable[[], None], complete: Callable[[], bool]) -> None:
        """Look up until cancelled; call `on_change` after each lookup.

        While `complete()` is false, some known peer is not ready, lookups are urgent.
        """
        while True:
            self._wanted.clear()
            await asyncio.gather(*(self._look_up(each, on_change) for each in self._targets))
            await asyncio.sleep(min(URGENT_SECONDS, self._refresh_seconds))
            urgent = time.monotonic() < self._urgent_until and not complete()
            if not urgent:
                rest = max(0.0, self._refresh_seconds - URGENT_SECONDS)
                await _first_of(self._wanted, rest)

    async def _look_up(self, target: str, on_change: Callable[[], None]) -> None:
        try:
            answer = await self._resolve(target)
            if not answer:
                raise OSError("the answer has no addresses")
        except OSError as error:
            self._failures.setdefault(target, _Failure()).report(target, error)
        else:
            self._answers[target] = answer
            if self._failures.pop(target, None) is not None:
                logger.info("name resolved", extra={"target": target})
        try:
            on_change()
        except Exception:
            # The lookups must continue: the next one tries again.
            logger.exception("addresses not applied", extra={"target": target})


class _Failure:
    """Failed lookups of a name, which are logged once, and once more when they last."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._level = logging.NOTSET

    def report(self, target: str, error: OSError) -> None:
        lasting = time.monotonic() - self._since >= GRACE_SECONDS
        level = logging.WARNING if lasting else logging.INFO
        if level > self._level:
            self._level = level
            logger.log(
                level, "name resolution failed", extra={"target": target, "error": str(error)}
            )


async def _first_of(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
