"""The way of tokens past the task that reads them, so that a token wakes no task."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import TypeAlias

from mesh.protocol.tokens import TokenChunk
from orchestrator.routing.backends.backend import TokenStream


class Taken(Enum):
    """What happened to a chunk."""

    ALL = auto()
    """It was taken."""
    WAKE = auto()
    """It was taken, and the reader must wake for it."""
    LATER = auto()
    """It was not taken, but will be after a call of the function that was given with it."""
    NONE = auto()
    """The reader must take it."""


Take: TypeAlias = Callable[[TokenChunk, Callable[[], None]], Taken]
"""Takes a chunk; the function is to be called after `Taken.LATER`."""


class DirectPath:
    """Connects the stream of an engine with the call of the client.

        stream ── take(chunk) ──▶ text ──▶ write      otherwise: stream ─▶ generators ─▶ call's task

    The client's side leads the path to its call; the engine's side connects each stream. A chunk
    that arrives while the reader of the stream waits is then taken without the reader.
    """

    __slots__ = ("_stream", "_take")

    def __init__(self) -> None:
        self._take: Take | None = None
        self._stream: TokenStream | None = None

    def lead_to(self, take: Take) -> None:
        """Gives all chunks to `take` from now on."""
        self._take = take

    def close(self) -> None:
        """Takes nothing any more."""
        self._take = self._stream = None

    def connect(self, stream: TokenStream, taken: list[int]) -> None:
        """Takes what arrives from now on, and adds its ids to `taken`.

        Does nothing for streams that are connected already, or that wake their reader always.
        """
        if self._take is None or stream is self._stream:
            return
        self._stream = stream
        pass_on = getattr(stream, "pass_on", None)
        if pass_on is not None:
            pass_on(lambda chunk, retry: self._pass_on(chunk, retry, taken))

    def _pass_on(self, chunk: TokenChunk, retry: Callable[[], None], taken: list[int]) -> Taken:
        if self._take is None:
            return Taken.NONE
        result = self._take(chunk, retry)
        if result is Taken.ALL or result is Taken.WAKE:
            taken += chunk.token_ids
        return result


NO_PATH = DirectPath()
"""Leads nowhere."""
