"""Models whose engines are scaled to zero: which ones sleep, and the requests that wait for them.

An autoscaler starts an engine because requests arrive (`orchestrator_model_requests_total`). Until
it is ready a bounded number of requests wait; all others learn when to come back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from mesh.context import current_request
from mesh.errors import ErrorKind, MeshError

logger = logging.getLogger("orchestrator.routing.waking")

SPREAD = 0.5
"""Largest random extension of Retry-After, so that clients do not return at the same time."""

OVERDUE_SHARE = 0.25
"""Part of the time so far that is expected to remain when a start takes longer than usual."""

MIN_RETRY_SECONDS = 1.0

MAX_START_SECONDS = 3600.0
"""Longest start that is measured. An engine that is later was not started for that request."""


class WakingSettings(NamedTuple):
    """How requests for a model without an engine are treated."""

    hold_seconds: float = 0.0
    """Longest wait for an engine, and again for its start once it has an address; 0: none."""
    max_held: int = 16
    """Most requests that wait, over all models."""
    expected_seconds: float = 60.0
    """Time that an engine takes to start, until it has been measured."""


class _Model:
    """A named model without an engine."""

    def __init__(self, expected_seconds: float) -> None:
        self.asked: float | None = None
        """When the first request arrived without an engine, at most `MAX_START_SECONDS` ago."""
        self.expected_seconds = expected_seconds


class Waking:
    """The models that are known by name, with or without engines. For one event loop."""

    def __init__(
        self,
        targets: Mapping[str, Collection[str]],
        settings: WakingSettings,
        starting: Callable[[Collection[str]], bool],
    ) -> None:
        """`targets` are the addresses of each model's engines, by the model's name.

        `starting` returns whether an engine exists at one of these addresses.
        """
        self._targets = targets
        self._settings = settings
        self._starting = starting
        self._models = {name: _Model(settings.expected_seconds) for name in targets}
        self._num_held = 0

    @property
    def names(self) -> Collection[str]:
        """Names of the models that are known without an engine."""
        return self._targets.keys()

    @property
    def holds(self) -> bool:
        """Whether requests may wait for an engine, so that a model without one can be used."""
        return self._settings.hold_seconds > 0 and bool(self._targets)

    @property
    def num_held(self) -> int:
        """Requests that wait now."""
        return self._num_held

    def served(self, names: Collection[str]) -> None:
        """Record which models have a ready engine now."""
        now = time.monotonic()
        for name, model in self._models.items():
            if name in names and model.asked is not None:
                seconds, model.asked = now - model.asked, None
                if seconds <= MAX_START_SECONDS:
                    model.expected_seconds = max(MIN_RETRY_SECONDS, seconds)
                logger.info("model woke up", extra={"model": name, "seconds": seconds})

    async def wait(
        self, name: str, usable: Callable[[], bool], next_change: Callable[[], asyncio.Event]
    ) -> None:
        """Wait until `usable()`; returns at once for a model that is not known by name.

        Raises MeshError (UNAVAILABLE) if too many wait already, or after the hold time.
        """
        model = self._models.get(name)
        if model is None:
            return
        now = time.monotonic()
        if model.asked is None or now - model.asked > MAX_START_SECONDS:
            model.asked = now
            logger.info("model is asked for without an engine", extra={"model": name})
        if not self._settings.hold_seconds or self._num_held >= self._settings.max_held:
            raise self._refusal(name, model)
        self._num_held += 1
        try:
            await self._held(name, model, usable, next_change)
        finally:
            self._num_held -= 1

    async def _held(
        self,
        name: str,
        model: _Model,
        usable: Callable[[], bool],
        next_change: Callable[[], asyncio.Event],
    ) -> None:
        hold = self._settings.hold_seconds
        until = time.monotonic() + hold
        is_starting = self._starting(self._targets[name])
        request = current_request()
        latest = None if request is None else request.first_token_deadline
        while not usable():
            changed = next_change()
            if not is_starting and self._starting(self._targets[name]):
                # Its capacity is coming: wait for the rest of the start.
                is_starting, until = True, time.monotonic() + hold
            end = until if latest is None else min(until, latest)
            left = end - time.monotonic()
            if left <= 0:
                # Another orchestrator would let it wait for the same engine.
                raise self._refusal(name, model, is_final=True)
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                pass

    def _refusal(self, name: str, model: _Model, *, is_final: bool = False) -> MeshError:
        state = "starting" if self._starting(self._targets[name]) else "asleep"
        waited = 0.0 if model.asked is None else time.monotonic() - model.asked
        left = max(model.expected_seconds - waited, waited * OVERDUE_SHARE, MIN_RETRY_SECONDS)
        return MeshError(
            ErrorKind.UNAVAILABLE,
            f"no engine is ready for model {name!r}: it is {state}",
            retry_after=left * random.uniform(1, 1 + SPREAD),
            is_final=is_final,
        )
