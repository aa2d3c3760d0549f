"""What a response uses of the transport; its head and the first part of its body are one write.

uvloop writes at once, and each write is a system call, a packet, and a wake-up of the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class ResponseTransport:
    """For all responses of one connection, one after another."""

    __slots__ = ("_close", "_expects_head", "_head", "_loop", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        close: Callable[[], None],
    ) -> None:
        """`close` ends the connection after a response."""
        self._transport = transport
        self._loop = loop
        self._close = close
        self._expects_head = False
        self._head = b""

    def expect_head(self) -> None:
        """The next write is the head of a response."""
        self.flush()
        self._expects_head = True

    def write(self, data: bytes) -> None:
        """Write a part of a response; a head waits for the next part, at most for this turn."""
        if self._expects_head:
            self._expects_head = False
            self._head = data
            self._loop.call_soon(self.flush)
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that still waits."""
        if self._head:
            head, self._head = self._head, b""
            if not self._transport.is_closing():
                self._transport.write(head)

    def is_closing(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._transport.is_closing()

    def close(self) -> None:
        """End the connection, after what was written."""
        self.flush()
        self._close()
