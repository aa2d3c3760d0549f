"""Limits on the bytes of a request that are not its body: head, chunk extensions, trailers."""

from __future__ import annotations

MAX_HEADER_BYTES = 32 * 1024
"""Limit for the request line and all headers together, and for chunk extensions and trailers."""

MAX_NUM_HEADERS = 100

MAX_PIPELINED = 16
"""Requests that may wait on one connection for the responses to earlier ones."""

MAX_UNREAD_BYTES = 256 * 1024
"""Rest of a body that is read after the response to keep the connection, as in Go's net/http."""

MAX_DISCARDED_BYTES = 16 * 1024 * 1024
"""Input that is discarded before a connection is closed.

Clients that send their whole body before they read, such as httpx, lose a response otherwise.
"""

MIN_BYTES_PER_SECOND = 16 * 1024
"""Rate at which a client must send a body or read a response after the first seconds."""

CHUNK_OVERHEAD_BYTES = 16
"""Bytes that each chunk may have besides its data, as in Go's net/http."""


class ByteBudget:
    """Counts the bytes of one part of a request that are not body.

    The parser buffers an incomplete header, extension or trailer and calls no callback for it, so
    each read is counted as a whole and the body bytes in it are subtracted.
    """

    __slots__ = ("_allowed", "_received", "_since_body")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin another part of a request."""
        self._received = self._allowed = self._since_body = 0

    def receive(self, num_bytes: int) -> None:
        """Count a read, before it is parsed."""
        self._received += num_bytes
        self._since_body += num_bytes

    def add_body(self, num_bytes: int) -> None:
        """Count body bytes of the current read; more body allows more chunk headers."""
        self._since_body = 0
        self._allowed += CHUNK_OVERHEAD_BYTES + 3 * num_bytes

    @property
    def is_exceeded(self) -> bool:
        """Whether the bytes that are not body exceed the limit."""
        return max(self._since_body, self._received - self._allowed) > MAX_HEADER_BYTES
