"""Parses large input of all connections in turn, so that no read occupies the event loop for long.

The time to parse a read depends on its content: 128 KiB of chunks with one byte each take 20 ms,
the same number of bytes in one chunk 0.1 ms. And many connections may be readable at once.

    read ─▶ slices of 4 KiB, parsed for up to 1 ms ─▶ reading continues
                   │ more                                    ▲
                   └─▶ reading is paused; in each iteration  │
                       of the loop one connection has 1 ms ──┘
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

SLICE_BYTES = 4096
"""Input that is parsed at once."""

TURN_SECONDS = 0.001
"""Time after which a connection's turn ends."""


class PausableFlow(FlowControl):
    """Flow control of a connection that also pauses reading while input waits for its turn."""

    _holds = False

    def hold(self) -> None:
        """Pause reading, whatever the application wants."""
        if not self._holds and not self.read_paused:
            self._transport.pause_reading()
        self._holds = True

    def release(self) -> None:
        """End `hold`."""
        if self._holds and not self.read_paused and not self._transport.is_closing():
            self._transport.resume_reading()
        self._holds = False

    def pause_reading(self) -> None:
        """Pause reading for the application."""
        if not self.read_paused:
            self.read_paused = True
            if not self._holds:
                self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading for the application."""
        if self.read_paused:
            self.read_paused = False
            if not self._holds:
                self._transport.resume_reading()


class Input:
    """The input of one connection that is not parsed yet."""

    def __init__(
        self, turns: InputTurns, flow: PausableFlow, parse: Callable[[bytes], None]
    ) -> None:
        """`parse` takes up to SLICE_BYTES at a time."""
        self._turns = turns
        self._flow = flow
        self._parse = parse
        self._data = memoryview(b"")

    def receive(self, data: bytes) -> None:
        """Parse a read, now or in turn."""
        if self._data:  # TLS delivers what it has decrypted, although reading is paused
            self._data = memoryview(bytes(self._data) + data)
        elif len(data) <= SLICE_BYTES:
            self._parse(data)
        else:
            self._data = memoryview(data)
            self._turns.add(self)

    def drop(self) -> None:
        """Discard what waits, because the connection is lost."""
        self._data = memoryview(b"")

    def wait(self) -> None:
        """Pause reading until the next turn."""
        self._flow.hold()

    def take_turn(self) -> bool:
        """Parse for TURN_SECONDS. Returns whether anything is left."""
        end = time.perf_counter() + TURN_SECONDS
        while self._data:
            piece, self._data = self._data[:SLICE_BYTES], self._data[SLICE_BYTES:]
            self._parse(bytes(piece))
            if time.perf_counter() > end:
                break
        if not self._data:
            self._flow.release()
        return bool(self._data)


class InputTurns:
    """The connections of one server whose input waits."""

    def __init__(self) -> None:
        self._waiting: deque[Input] = deque()

    def add(self, given: Input) -> None:
        """Give a connection its first turn: now, if no other one waits."""
        if self._waiting or given.take_turn():
            given.wait()
            self._waiting.append(given)
            if len(self._waiting) == 1:
                self._schedule()

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        given = self._waiting.popleft()
        try:
            if given.take_turn():
                self._waiting.append(given)
        finally:
            if self._waiting:
                self._schedule()
