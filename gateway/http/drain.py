"""Drain of the HTTP server: refuse new requests, wait for running ones, cut off the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mesh.errors import ErrorKind, MeshError

CutOff = Callable[[Exception], None]


class Drain:
    """Counts the running requests and ends them when the drain times out."""

    def __init__(self) -> None:
        self.draining = False
        self._num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._cutting_off = False
        self._cut_offs: set[CutOff] = set()

    @property
    def num_active(self) -> int:
        """Number of running requests."""
        return self._num_active

    def __enter__(self) -> None:
        """Count a request while the block runs. Raises MeshError (UNAVAILABLE) while draining."""
        if self.draining:
            raise MeshError(
                ErrorKind.UNAVAILABLE, "this server is stopping; try again", retry_after=1.0
            )
        self._begin()

    def __exit__(self, *_: object) -> None:
        self._end()

    @contextmanager
    def waiting(self, cut_off: CutOff) -> Iterator[None]:
        """Count what another gateway reads here while the block runs, also while draining."""
        self._begin()
        self.register(cut_off)
        try:
            yield
        finally:
            self.unregister(cut_off)
            self._end()

    def _begin(self) -> None:
        self._num_active += 1
        self._idle.clear()

    def _end(self) -> None:
        self._num_active -= 1
        if not self._num_active:
            self._idle.set()

    def register(self, cut_off: CutOff) -> None:
        """Register a callback that ends a request; called at once if requests are being cut off."""
        self._cut_offs.add(cut_off)
        if self._cutting_off:
            cut_off(_stopped())

    def unregister(self, cut_off: CutOff) -> None:
        """Remove the callback of a request that is ending."""
        self._cut_offs.discard(cut_off)

    def begin(self) -> None:
        """Refuse new requests from now on."""
        self.draining = True

    async def wait_idle(self) -> None:
        """Wait until no request is running."""
        await self._idle.wait()

    def cut_off(self) -> int:
        """End the requests that still wait for something; returns their number."""
        self._cutting_off = True
        running = list(self._cut_offs)
        for cut_off in running:
            cut_off(_stopped())
        return len(running)


def _stopped() -> MeshError:
    return MeshError(ErrorKind.UNAVAILABLE, "the server stopped", retry_after=1.0)
