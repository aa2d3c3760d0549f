"""The end of the process, as requests see it: refuse new ones, wait for running ones, cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.errors import ErrorKind, MeshError

CutOff = Callable[[Exception], None]


class Drain:
    """Knows which requests run, each in a block of it, and how to end them."""

    def __init__(self) -> None:
        self.draining = False
        self._num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._cutting_off = False
        self._cut_offs: set[CutOff] = set()

    @property
    def num_active(self) -> int:
        """Requests that run now."""
        return self._num_active

    def __enter__(self) -> None:
        """A request runs inside the block. Raises MeshError (UNAVAILABLE) while draining."""
        if self.draining:
            raise MeshError(
                ErrorKind.UNAVAILABLE, "this server is stopping; try again", retry_after=1.0
            )
        self._num_active += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self._num_active -= 1
        if not self._num_active:
            self._idle.set()

    def register(self, cut_off: CutOff) -> None:
        """From now on `cut_off` ends a request; it is called at once if that time has come."""
        self._cut_offs.add(cut_off)
        if self._cutting_off:
            cut_off(_stopped())

    def unregister(self, cut_off: CutOff) -> None:
        """The request has nothing more to wait for."""
        self._cut_offs.discard(cut_off)

    def begin(self) -> None:
        """From now on new requests are refused."""
        self.draining = True

    async def wait_idle(self) -> None:
        """Returns once no request is running."""
        await self._idle.wait()

    def cut_off(self) -> int:
        """Ends the requests that still wait for something; gives their number."""
        self._cutting_off = True
        running = list(self._cut_offs)
        for cut_off in running:
            cut_off(_stopped())
        return len(running)


def _stopped() -> MeshError:
    return MeshError(ErrorKind.UNAVAILABLE, "the server stopped", retry_after=1.0)
