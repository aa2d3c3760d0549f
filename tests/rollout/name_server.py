"""A DNS server whose answers follow changes late, not at all, or with NXDOMAIN in between."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import time
from collections.abc import Collection
from typing import cast

NXDOMAIN = 3
A_RECORD = 1
RESPONSE = 0x8580
"""Flags of a response: authoritative, recursion desired and available."""

ANSWER = 0xC00C
"""Compressed name of a record: the question's."""


class NameServer(asyncio.DatagramProtocol):
    """Answers A queries over UDP for the names that `publish` was called with."""

    def __init__(self, late_seconds: float = 0.0) -> None:
        """Changes are visible `late_seconds` after they were published, as through a cache."""
        self.late_seconds = late_seconds
        self.silent = False
        """Answer nothing."""
        self.unknown = False
        """Answer NXDOMAIN to everything."""
        self.num_queries = 0
        self._history: dict[str, list[tuple[float, tuple[str, ...]]]] = {}

    async def listen(self, host: str, port: int = 53) -> asyncio.DatagramTransport:
        """Serve at HOST:PORT; the caller closes the transport."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        return transport

    def publish(self, name: str, hosts: Collection[str], *, at_once: bool = False) -> None:
        """Set the addresses of a name; none: the name does not exist."""
        when = time.monotonic() - (self.late_seconds if at_once else 0.0)
        self._history.setdefault(name, []).append((when, tuple(sorted(hosts))))

    def addresses(self, name: str) -> tuple[str, ...]:
        """The addresses that an answer has now."""
        visible = time.monotonic() - self.late_seconds
        known = [hosts for when, hosts in self._history.get(name, ()) if when <= visible]
        return known[-1] if known and not self.unknown else ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.num_queries += 1
        if not self.silent:
            self._transport.sendto(self._response(data), addr)

    def _response(self, query: bytes) -> bytes:
        name, end = _name(query, 12)
        (kind,) = struct.unpack_from("!H", query, end)
        hosts = self.addresses(name)
        records = hosts if kind == A_RECORD else ()
        flags = RESPONSE | (0 if hosts else NXDOMAIN)
        header = struct.pack("!6H", *struct.unpack_from("!H", query), flags, 1, len(records), 0, 0)
        answers = b"".join(
            struct.pack("!3HIH", ANSWER, A_RECORD, 1, 0, 4) + ipaddress.ip_address(host).packed
            for host in records
        )
        return header + query[12 : end + 4] + answers


def _name(message: bytes, begin: int) -> tuple[str, int]:
    """The name at `begin` in a message, and the position after it."""
    labels: list[str] = []
    while length := message[begin]:
        labels.append(message[begin + 1 : begin + 1 + length].decode("ascii", "replace").lower())
        begin += 1 + length
    return ".".join(labels), begin + 1
