"""Addresses (HOST:PORT) and the gRPC targets made of them."""

from __future__ import annotations

import os
import socket


class AddressError(OSError):
    """A server cannot listen on an address."""

    def __init__(self, address: str, error: OSError) -> None:
        """`address` is HOST:PORT as it is set; `error` is the system's."""
        # A failed name resolution has a negative number; `create_server` adds the address.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or str(error)
        super().__init__(number, f"cannot listen on {address}: {reason}")
        self.address = address

    def __str__(self) -> str:
        return str(self.strerror)


def bind_error(address: str, error: RuntimeError) -> AddressError:
    """Why gRPC, which does not report the system's error, could not bind to `address`."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, name = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        socket.create_server(name[:2], family=family).close()
    except OSError as cause:
        return AddressError(address, cause)
    return AddressError(address, OSError(str(error)))


def with_default_port(host: str, port: int) -> str:
    """HOST:PORT of `host`, which may already have a port; IPv6 addresses must be in brackets."""
    has_port = host.rpartition("]")[2].rpartition(":")[2].isdigit() and ":" in host
    return host if has_port else f"{host}:{port}"


def at_port(address: str, port: int) -> str:
    """HOST:PORT with another port, such as the actual port of a server that listens on port 0."""
    return f"{address.rpartition(':')[0]}:{port}"
