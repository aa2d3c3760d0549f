"""Clients that closed only their sending side (TCP half-close, as `nc -N` does).

A FIN does not show whether the client still reads. Data does: the system of a client that closed
the whole connection answers it with RST. An interim response (RFC 9110, section 15.2) is data that
every HTTP/1.1 client ignores. See docs/decisions/0068-probe-half-closed-clients.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

PROBE = b"HTTP/1.1 100 Continue\r\n\r\n"

UNPROBED_SECONDS = 1.0
"""Time to respond to an HTTP/1.0 client, which does not know interim responses."""

PROBE_SECONDS = 5.0
"""Interval of probes: the client may close its receiving side later."""

FIRST_CHECK_SECONDS = 0.001
MAX_CHECK_SECONDS = 0.25

_TCP_CLOSE = 7
"""State of a connection that received RST; the first byte of Linux's `struct tcp_info`."""


class HalfClosedClient:
    """Aborts the connection as soon as its client is known not to read."""

    def __init__(
        self,
        transport: asyncio.Transport,
        is_responding: Callable[[], bool],
        *,
        probe: bool,
    ) -> None:
        """`is_responding` returns whether the response has started; then writing finds errors."""
        self._transport = transport
        self._is_responding = is_responding
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._probes = probe
        if probe:
            transport.write(PROBE)
        self._seconds = FIRST_CHECK_SECONDS
        self._schedule()

    @staticmethod
    def is_detectable(transport: asyncio.Transport) -> bool:
        """Whether the system shows RSTs; a TLS connection has no half-closed state."""
        return hasattr(socket, "TCP_INFO") and transport.get_extra_info("ssl_object") is None

    def stop(self) -> None:
        """Stop checking."""
        self._timer.cancel()

    def _schedule(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._check)
        self._seconds = min(2 * self._seconds, MAX_CHECK_SECONDS)

    def _check(self) -> None:
        if self._transport.is_closing() or self._is_responding():
            return
        elapsed = self._loop.time() - self._since
        if self._is_reset() or (not self._probes and elapsed > UNPROBED_SECONDS):
            self._transport.abort()
            return
        if self._probes and elapsed > PROBE_SECONDS:
            self._since += elapsed
            self._transport.write(PROBE)
        self._schedule()

    def _is_reset(self) -> bool:
        sock = self._transport.get_extra_info("socket")
        state: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return state[0] == _TCP_CLOSE
