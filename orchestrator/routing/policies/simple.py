"""Policies that keep nothing about prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

AFFINITY_TOKENS = 64
"""Tokens of the prompt that decide which replica it prefers."""


class _Stateless:
    """The parts of a policy without an index."""

    def computed(self, address: str, token_ids: Sequence[int]) -> None:
        """Nothing is kept."""

    def mirror(self, address: str) -> None:
        """Nothing is kept."""

    def forget(self, address: str) -> None:
        """Nothing is kept."""


class RoundRobin(_Stateless):
    """Each replica in turn, whatever its load."""

    def __init__(self) -> None:
        self._last = ""

    def choose(self, loads: Mapping[str, float], token_ids: Sequence[int]) -> str:
        """The next address in their order."""
        self._last = min((each for each in loads if each > self._last), default=min(loads))
        return self._last


class LeastOutstanding(_Stateless):
    """The replica with the fewest outstanding tokens; among equal ones by the prompt's start."""

    def choose(self, loads: Mapping[str, float], token_ids: Sequence[int]) -> str:
        """The least loaded address."""
        least = min(loads.values())
        return preferred([each for each, load in loads.items() if load == least], token_ids)


class Affinity(_Stateless):
    """The replica that the first 64 tokens prefer, unless it has more work than they can save.

    A cached prefix saves at most the prompt's length: that much more load is accepted.
    """

    def choose(self, loads: Mapping[str, float], token_ids: Sequence[int]) -> str:
        """The preferred address among those that are not much busier than the least loaded."""
        most = min(loads.values()) + len(token_ids)
        return preferred([each for each, load in loads.items() if load <= most], token_ids)


def preferred(addresses: Sequence[str], token_ids: Sequence[int]) -> str:
    """Rendezvous hashing: adding or removing a replica moves only that replica's prompts.

    All orchestrators prefer the same replica.
    """
    if len(addresses) == 1:
        return addresses[0]
    prefix = ",".join(map(str, token_ids[:AFFINITY_TOKENS]))
    return max(addresses, key=lambda address: _preference(prefix, address))


def _preference(prefix: str, address: str) -> bytes:
    return hashlib.blake2b(f"{prefix}@{address}".encode(), digest_size=8).digest()
