"""uvicorn's HTTP protocol with limits on the size and duration of every part of a message.

    head ──────▶ body with chunks and trailers ──▶ head of the next request
    32 KiB, 10 s   extensions and trailers 32 KiB    (10 s after its first byte)
                   rate: gateway.validation.body

    response written ──▶ rest of the body: 256 KiB, 5 s ──▶ next request
                     ├─▶ more of it: FIN, then 16 MiB, 5 s ──▶ abort
                     └─▶ unread response: 30 s, then 16 KiB/s ──▶ abort

Without limits a client could hold a connection forever by sending nothing or single bytes, fill
the memory with a header or trailer that never ends, or never read its response.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import httptools
import uvicorn
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.connection import refusal
from gateway.connection.chunk_writer import ChunkWriter
from gateway.connection.half_closed import HalfClosedClient
from gateway.connection.http10 import use_http10
from gateway.connection.input_turns import Input, InputTurns, PausableFlow
from gateway.connection.limits import (
    MAX_DISCARDED_BYTES,
    MAX_HEADER_BYTES,
    MAX_NUM_HEADERS,
    MAX_PIPELINED,
    MAX_UNREAD_BYTES,
    MIN_BYTES_PER_SECOND,
    ByteBudget,
)
from gateway.connection.refusal import HEADER_TIMEOUT_SECONDS, Refusal, Refused, refusal_of
from gateway.connection.response_transport import ResponseTransport

LINGER_SECONDS = 5.0
"""Time in which unread input is discarded, so that its RST does not destroy the response."""

WRITE_GRACE_SECONDS = 30.0
"""Time after which a client must have read its response at the minimum rate."""

_SEND_RST = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket sends RST."""

_METHODS_WITH_BODY = (b"POST", b"PUT", b"PATCH")


class _Part(Enum):
    HEAD = "head"
    BODY = "body"


class _Unread(NamedTuple):
    """A response of which the client has not read everything."""

    since: float
    num_bytes: int


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    _part = _Part.HEAD
    """The part of the request that is being received."""
    _begun = False
    """Whether any byte of the head has arrived."""
    _num_unread_bytes = 0
    """Body bytes that the application does not read."""
    _num_trailers = 0
    _takes_body = False
    url = b""
    """The target of the newest request, as far as it has arrived."""
    _discarding = False
    """Whether all input is discarded, because it cannot be a further request."""
    _lingering = False
    """Whether the connection only waits for the client to close it."""
    _timer: asyncio.TimerHandle | None = None
    _running: RequestResponseCycle | None = None
    """The oldest request without a complete response; `cycle` is the newest request."""
    _unread: _Unread | None = None
    _half_closed: HalfClosedClient | None = None

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, turns: InputTurns
    ) -> None:
        super().__init__(config, server_state, app_state={})
        self._turns = turns

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._budget = ByteBudget()
        self.flow = PausableFlow(transport)
        self._input = Input(self._turns, self.flow, self._parse)
        self._response_transport = ResponseTransport(transport, self.loop, self._end_connection)
        self._chunk_writer = ChunkWriter(self._response_transport, self.flow)
        self._start_timer(HEADER_TIMEOUT_SECONDS, self._on_header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._half_closed is not None:
            self._half_closed.stop()
        if self._running is not None and not self._running.response_complete:
            _disconnect(self._running)  # uvicorn does so for the newest request only
        self.pipeline.clear()
        super().connection_lost(exc)
        # These reference the connection: a cycle would remain until the next garbage collection.
        self._input.drop()
        del self._response_transport, self._input, self._chunk_writer
        self._half_closed = self._running = None
        self.cycle = self.scope = None  # type: ignore[assignment]

    # Input

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._discarding:
            self._discard(len(data))
        else:
            self._input.receive(data)

    def _parse(self, data: bytes) -> None:
        if self._discarding:
            self._discard(len(data))
            return
        if self._part is _Part.HEAD:
            self._start_timer(HEADER_TIMEOUT_SECONDS, self._on_header_timeout)
        self._budget.receive(len(data))
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._refuse(refusal_of(error, self._previous_header))
            return
        if self._budget.is_exceeded:
            in_head = self._part is _Part.HEAD
            self._refuse(refusal.LARGE_HEADERS if in_head else refusal.LARGE_FRAMING)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection if the client may still read the response to a complete request."""
        running = self._running
        if (
            running is None
            or running.response_started
            or self._part is _Part.BODY
            or self._discarding
            or not HalfClosedClient.is_detectable(self.transport)
        ):
            return False
        self._stop_timer()
        self._half_closed = HalfClosedClient(
            self.transport,
            lambda: running.response_started,
            probe=running.scope["http_version"] == "1.1",
        )
        return True

    def _feed(self, data: bytes) -> None:
        """Parse `data`. Raises httptools.HttpParserError."""
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._decline_upgrade()
                data = data[offer.args[0] :]
            else:
                return

    @property
    def _previous_header(self) -> bytes | None:
        """The name of the last header of the current head; trailers are not counted."""
        headers = self.headers if self._begun else None
        return headers[-1][0] if headers else None

    def _decline_upgrade(self) -> None:
        """Parse the head again without the offer, because the parser skips the body after one."""
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"".join([*head, b"\r\n"]))

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True
        self._start_timer(HEADER_TIMEOUT_SECONDS, self._on_header_timeout)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is _Part.BODY:  # a trailer, which must not be taken for a header
            self._num_trailers += 1
            if self._num_trailers > MAX_NUM_HEADERS:
                raise Refused(refusal.LARGE_FRAMING)
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_NUM_HEADERS:
            raise Refused(refusal.LARGE_HEADERS)

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise Refused(refusal.NO_TUNNELS)
        if self.parser.should_upgrade():
            return  # `_feed` parses it again
        self._begun = False
        self._stop_timer()
        self._budget.reset()
        _check_head(self.parser.get_http_version(), self.url, self.headers)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refused(refusal.TOO_PIPELINED)
        self._part = _Part.BODY
        self._num_unread_bytes = self._num_trailers = 0
        self._takes_body = self.parser.get_method() in _METHODS_WITH_BODY
        super().on_headers_complete()
        self.cycle.transport = self._response_transport  # type: ignore[assignment]
        self._chunk_writer.offer(self.scope)
        if self.scope["http_version"] == "1.0":
            use_http10(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._budget.add_body(len(body))
        if self.cycle.response_started or not self._takes_body:
            self._num_unread_bytes += len(body)
            if self._num_unread_bytes > MAX_UNREAD_BYTES:
                raise Refused(refusal.UNREAD_BODY)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._part = _Part.HEAD
        self._stop_timer()
        self._budget.reset()
        super().on_message_complete()

    # Responses

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        self._response_transport.expect_head()
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._response_transport.flush()  # a response to HEAD is only a head
        self._unread = None
        if self._lingering:
            return
        super().on_response_complete()
        if self.transport.is_closing() or self._is_answering:
            return  # closed, or the next request in the pipeline has started
        if self._discarding or self._half_closed is not None:
            self._end_connection()
        elif self._part is _Part.BODY:
            self._start_timer(LINGER_SECONDS, self._linger)

    @property
    def _is_answering(self) -> bool:
        running = self._running
        return running is not None and not (running.response_complete or running.disconnected)

    def _refuse(self, reason: Refusal) -> None:
        """Refuse what arrives, without breaking the responses to earlier requests."""
        self._stop_timer()
        self._discarding = True
        answered = False
        if self._part is _Part.BODY:
            answered = self.cycle.response_complete
            if self.pipeline:
                self.pipeline.popleft()  # the request with this body waits for its turn
            elif not self.cycle.response_started:
                _disconnect(self.cycle)
        if self._is_answering:
            return  # `on_response_complete` ends the connection
        if not answered:
            self.transport.write(reason.response(self.url))
        self._linger()

    # The end of the connection

    def check_reader(self, now: float) -> None:
        """Abort a client that does not read its response; called once a second.

        A stream is exempt until it ends: it has its request's deadline.
        """
        num_bytes = self.transport.get_write_buffer_size()
        if not num_bytes or (self._is_streaming and not self.transport.is_closing()):
            self._unread = None
        elif self._unread is None:
            self._unread = _Unread(now, num_bytes)
        else:
            late = now - self._unread.since - WRITE_GRACE_SECONDS
            if late > 0 and self._unread.num_bytes - num_bytes < late * MIN_BYTES_PER_SECOND:
                self._reset()

    @property
    def _is_streaming(self) -> bool:
        running = self._running
        if running is None or running.response_complete or not running.response_started:
            return False
        return running.chunked_encoding is True or running.scope["http_version"] == "1.0"

    def _end_connection(self) -> None:
        """Close it now, or when the client has sent the rest of its request."""
        if self._part is _Part.BODY or self._discarding:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        """Send FIN, and discard input for a short time.

        To close at once would send RST if there is unread input, and the client's system would
        then discard the response.
        """
        if self._lingering or self.transport.is_closing():
            return
        self._lingering = self._discarding = True
        self._num_unread_bytes = 0
        self.flow.resume_reading()
        if self.transport.can_write_eof() and self._half_closed is None:
            self.transport.write_eof()
        self._stop_timer()
        self._start_timer(LINGER_SECONDS, self.transport.close)

    def _discard(self, num_bytes: int) -> None:
        self._num_unread_bytes += num_bytes
        if self._num_unread_bytes > MAX_DISCARDED_BYTES:
            self._reset()

    def _reset(self) -> None:
        """Abort the connection with RST; the kernel would go on to send what it has buffered."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _SEND_RST)
        self.transport.abort()

    # Timers

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_header_timeout(self) -> None:
        self._timer = None
        if self._begun:
            self._refuse(refusal.SLOW_HEADERS)
        elif not self._is_answering:
            self.transport.close()


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Report to the application that the client has disconnected."""
    cycle.disconnected = True
    cycle.message_event.set()


def _check_head(version: str, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(refusal.BAD_VERSION)
    size, num_hosts = len(url), 0
    for name, value in headers:
        size += len(name) + len(value) + 4
        if name == b"host":
            num_hosts += 1
        elif name == b"transfer-encoding" and value.lower() != b"chunked":
            raise Refused(refusal.ONLY_CHUNKED)
    if size > MAX_HEADER_BYTES:
        raise Refused(refusal.LARGE_HEADERS)
    if num_hosts > 1 or (version == "1.1" and not num_hosts):
        raise Refused(refusal.ONE_HOST)
