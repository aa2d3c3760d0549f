"""uvicorn's HTTP protocol with limits on the size and duration of a request's headers.

Without limits a client could hold a connection forever by sending nothing or single bytes,
and fill the memory with a header that never ends.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEADER_TIMEOUT_SECONDS = 10.0
"""Time from the connection, or a later request's first byte, to the end of the headers."""

MAX_HEADER_BYTES = 32 * 1024
"""Limit for the request line and all headers together."""

MAX_NUM_HEADERS = 100


class _TooLarge(Exception):
    """Stops the parser; handled in this module."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    _timer: asyncio.TimerHandle | None = None
    _num_bytes = 0
    """Bytes since the request began, until its headers end."""
    _in_headers = True
    _begun = False
    """Whether any byte of the request has arrived."""
    _too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_headers:
            self._num_bytes += len(data)
        super().data_received(data)
        # The parser buffers an incomplete header and calls no callback for it.
        if self._in_headers and self._num_bytes > MAX_HEADER_BYTES and not self._is_closing:
            self._refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        self._in_headers = True
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_NUM_HEADERS:
            self._too_large = True
            raise _TooLarge

    def on_headers_complete(self) -> None:
        self._in_headers = self._begun = False
        self._num_bytes = 0
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEADER_BYTES:
            self._too_large = True
            raise _TooLarge
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when its parser rejects the request."""
        self._refuse(431 if self._too_large else 400)

    @property
    def _is_closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self._is_closing:
            return
        if self._begun:
            self._refuse(408)
        else:  # the client has disconnected
            self.transport.close()

    def _refuse(self, status: int) -> None:
        message, code = _REFUSALS[status]
        fields = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": fields}, separators=(",", ":")).encode()
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        self._stop_timer()
        self.transport.close()


_REFUSALS = {
    400: ("this is not an HTTP request", "bad_request"),
    408: (
        f"the headers must arrive within {HEADER_TIMEOUT_SECONDS:g} seconds",
        "request_timeout",
    ),
    431: (
        f"request line and headers must be at most {MAX_HEADER_BYTES} bytes "
        f"and {MAX_NUM_HEADERS} headers",
        "headers_too_large",
    ),
}
