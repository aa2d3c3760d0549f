"""Writes chunks of a streamed response to the connection, past ASGI's messages.

An ASGI `send` is a coroutine through every middleware for each event. While the connection takes
data, a chunk of the body needs none of that.
"""

from __future__ import annotations

from starlette.types import Scope
from uvicorn._types import HTTPScope
from uvicorn.protocols.http.flow_control import FlowControl

from gateway.connection.response_transport import ResponseTransport

_EXTENSION = "weir.chunks"


class ChunkWriter:
    """For one connection; only between the start and the end of a response of chunks."""

    __slots__ = ("_flow", "_is_closing", "_write")

    def __init__(self, transport: ResponseTransport, flow: FlowControl) -> None:
        self._write = transport.write
        self._is_closing = transport.is_closing
        self._flow = flow

    @property
    def takes_now(self) -> bool:
        """Whether the connection is open, and its buffer is not full."""
        return not (self._flow.write_paused or self._is_closing())

    def write(self, data: bytes) -> None:
        """Write a chunk of the body, which may not be empty."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def offer(self, scope: HTTPScope) -> None:
        """Offer it to the request with this scope, whose response may be of chunks."""
        if scope["http_version"] == "1.1" and scope["method"] != "HEAD":
            scope["extensions"] = {_EXTENSION: self}  # type: ignore[dict-item]

    @staticmethod
    def of(scope: Scope) -> ChunkWriter | None:
        """What was offered; None if the response must be sent by ASGI."""
        writer: ChunkWriter | None = scope.get("extensions", {}).get(_EXTENSION)
        return writer
