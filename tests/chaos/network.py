"""A network namespace for one process, whose connection to the host can be cut without a reset."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

import pytest

WRONG_MAC = "02:00:00:00:00:01"
"""Frames to this address are dropped by the receiving kernel; no error reaches the sender."""

_numbers = itertools.count(os.getpid() % 200)


class Namespace(NamedTuple):
    """A namespace with one link to the host."""

    name: str
    link: str
    """Name of the link's end at the host; its other end has the suffix `p`."""
    host: str
    address: str
    """IP addresses of both ends."""

    @property
    def command(self) -> list[str]:
        """Prefix of a command that runs in the namespace."""
        return ["ip", "netns", "exec", self.name]

    def cut(self) -> None:
        """Drops all packets in both directions."""
        _run("ip", "neigh", "replace", self.address, "lladdr", WRONG_MAC, "dev", self.link)
        neighbour = ["ip", "neigh", "replace", self.host, "lladdr", WRONG_MAC, "dev"]
        _run(*self.command, *neighbour, f"{self.link}p")

    def heal(self) -> None:
        """Ends the cut."""
        _run("ip", "neigh", "del", self.address, "dev", self.link)
        _run(*self.command, "ip", "neigh", "del", self.host, "dev", f"{self.link}p")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new namespace; skips the test where the machine does not permit one."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command `ip`")
    number = next(_numbers) % 250
    link = f"weir{os.getpid() % 10000}x{number}"
    made = Namespace(link, link, f"10.213.{number}.1", f"10.213.{number}.2")
    try:
        try:
            _run("ip", "netns", "add", made.name)
            _run("ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}p")
            _run("ip", "link", "set", f"{link}p", "netns", made.name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted: {error.stderr.decode().strip()}")
        _run("ip", "addr", "add", f"{made.host}/30", "dev", link)
        _run("ip", "link", "set", link, "up")
        _run(*made.command, "ip", "addr", "add", f"{made.address}/30", "dev", f"{link}p")
        for each in ("lo", f"{link}p"):
            _run(*made.command, "ip", "link", "set", each, "up")
        yield made
    finally:
        # The link goes with the namespace, unless it was not moved into it.
        for command in (["netns", "del", made.name], ["link", "del", link]):
            with suppress(subprocess.CalledProcessError):
                _run("ip", *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)
