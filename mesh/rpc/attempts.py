"""What a call needs of a method that several peers serve; `mesh.rpc.peers` implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mesh.errors import MeshError


class Attempts(ABC):
    """The attempts of one call, one after another. Use as a context manager around all of them."""

    @abstractmethod
    async def next(self) -> Any:
        """The callable to try: of a ready peer, which may have to be awaited. Raises MeshError."""

    @abstractmethod
    async def failed(self, error: MeshError) -> None:
        """Record that the last attempt failed without a response; raises `error` if it is final."""

    @abstractmethod
    def timeout(self) -> float | None:
        """Seconds to the deadline; None if there is none."""

    @abstractmethod
    def end(self) -> None:
        """Record that the call has ended."""


class PeersMethod(ABC):
    """A method of a stub whose calls go to one of several peers."""

    @abstractmethod
    def attempts(self, timeout: float | None, *, hold: bool) -> Attempts:
        """The attempts of a call that ends within `timeout` seconds; None: without a deadline.

        `hold`: whether the call waits for a ready peer if there is none.
        """
