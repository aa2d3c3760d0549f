"""Accepted values of the `Host` header, against DNS rebinding.

A page of any site can point its site's name at the gateway's address, and is then of the same
origin as the gateway for the browser. The browser still sends the site's name as `Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

ANY = "*"
INTERNAL = "internal"
"""Stands for IP addresses and for names that no public DNS zone can have."""

_INTERNAL_SUFFIXES = (".localhost", ".local", ".internal", ".svc")
"""Reserved (RFC 6761, RFC 6762, ICANN's board resolution of 2024-07-29), and Kubernetes' names."""


class AllowedHosts:
    """A set of host names without ports."""

    def __init__(self, hosts: Collection[str]) -> None:
        """Lower-case names, `*.example.org`, `internal` or `*`; empty accepts any."""
        self._names = frozenset(host for host in hosts if not host.startswith("*"))
        suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
        self._suffixes = (*suffixes, *(_INTERNAL_SUFFIXES if INTERNAL in hosts else ()))
        self._any = not hosts or ANY in hosts
        self._internal = INTERNAL in hosts

    def __contains__(self, host: str | None) -> bool:
        """Whether the value of a Host header is accepted; None if there is no such header.

        Browsers always send the header. HTTP/1.0 clients, which alone may omit it, are accepted.
        """
        if self._any or host is None:
            return True
        name = _name_of(host)
        if name in self._names or name.endswith(self._suffixes):
            return True
        return self._internal and _is_internal(name)


@lru_cache(256)  # nearly all requests have the same value
def _name_of(host: str) -> str:
    """Return the name in a Host header without its port; empty if the header is invalid."""
    if set(host) & set("/?#@\\"):
        return ""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018 - raises ValueError if it is not a port
    except ValueError:
        return ""
    return parts.hostname or ""


@lru_cache(256)
def _is_internal(name: str) -> bool:
    if name and "." not in name and ":" not in name:
        return True  # a name of one label, such as that of a container or a Service
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
