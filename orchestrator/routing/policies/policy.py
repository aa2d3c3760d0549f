"""The interface of a routing policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from orchestrator.routing.policies.cache_mirror import CacheMirror


class RoutingPolicy(Protocol):
    """Chooses among replicas that could all run a request. Used from one event loop."""

    def choose(self, loads: Mapping[str, float], token_ids: Sequence[int]) -> str:
        """The address of the replica that is to run this prompt; it is assumed to do so.

        `loads` are the outstanding tokens by address, of at least one replica.
        """
        ...

    def computed(self, address: str, token_ids: Sequence[int]) -> None:
        """A replica has computed these tokens: a prompt and its completion."""
        ...

    def mirror(self, address: str) -> CacheMirror | None:
        """What takes the reports of a replica's prefix cache; None if the policy needs none."""
        ...

    def forget(self, address: str) -> None:
        """A replica is lost; what it had cached may be gone when it comes back."""
        ...
