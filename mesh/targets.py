"""gRPC targets of services that there may be several of."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence


def balanced_target(hosts: Sequence[str]) -> str:
    """One target for all of `hosts`, each HOST:PORT: a name, or several IPv4 addresses.

    A name leads to as many addresses as DNS gives it; gRPC knows no list of names. ValueError.
    """
    if len(hosts) == 1:
        return hosts[0]
    for host in hosts:
        try:
            ipaddress.IPv4Address(host.rpartition(":")[0])
        except ValueError:
            raise ValueError(
                f"must be one name, or several IPv4 addresses with ports, given {host!r} in a list"
            ) from None
    return f"ipv4:{','.join(hosts)}"
