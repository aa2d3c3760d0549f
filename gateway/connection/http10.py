"""Responses to HTTP/1.0 clients, which do not know chunked transfer coding."""

from __future__ import annotations

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Http10Cycle(RequestResponseCycle):
    """A response without chunks: without a Content-Length its end is the connection's end."""

    async def send(self, message: ASGISendEvent) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.chunked_encoding = False
        elif message["type"] == "http.response.body":
            # uvicorn compares the number of bytes left with the size of each part.
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def use_http10(cycle: RequestResponseCycle) -> None:
    """Make `cycle`, whose task has not started yet, respond without chunks."""
    # uvicorn has no setting for the class. A wrapper of `send` would reference itself, so that
    # only the garbage collector could free it.
    cycle.__class__ = Http10Cycle
