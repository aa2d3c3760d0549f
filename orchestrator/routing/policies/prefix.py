"""Chooses the replica that has the least to do for a prompt: its own work, and what is left of
the prompt after the part that is cached there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.routing.policies.cache_mirror import CacheMirror
from orchestrator.routing.policies.prefix_index import (
    BLOCK_TOKENS,
    DEFAULT_MAX_BLOCKS,
    PrefixIndex,
    block_hashes,
)
from orchestrator.routing.policies.simple import Affinity, preferred

LOAD_WEIGHT = 0.1
"""Tokens of a prompt that cost as much as one outstanding token, which is mostly one that may be
generated, together with those of other requests. Chosen with benchmarks/routing_sim.py."""


class Prefix:
    """Scores cached blocks against outstanding work; without cached blocks it is `Affinity`."""

    def __init__(
        self, max_blocks: int = DEFAULT_MAX_BLOCKS, load_weight: float = LOAD_WEIGHT
    ) -> None:
        """`max_blocks` bounds the index's memory."""
        self.index = PrefixIndex(max_blocks)
        self._load_weight = load_weight
        self._without_blocks = Affinity()

    def choose(self, loads: Mapping[str, float], token_ids: Sequence[int]) -> str:
        """The address with the lowest cost, in tokens to compute."""
        hashes = block_hashes(token_ids)
        address = self._best(loads, token_ids, hashes)
        self.index.add(address, hashes)
        return address

    def computed(self, address: str, token_ids: Sequence[int]) -> None:
        """The next turn of a conversation begins with these tokens."""
        self.index.add(address, block_hashes(token_ids))

    def mirror(self, address: str) -> CacheMirror:
        """Corrects the index by what the engine stores and evicts."""
        return CacheMirror(self.index, address)

    def forget(self, address: str) -> None:
        """A replica that comes back has an empty cache."""
        self.index.forget(address)

    def _best(
        self, loads: Mapping[str, float], token_ids: Sequence[int], hashes: Sequence[int]
    ) -> str:
        saved = {
            address: num_blocks * BLOCK_TOKENS
            for address in loads
            if (num_blocks := self.index.num_cached(address, hashes))
        }
        if not saved:
            return self._without_blocks.choose(loads, token_ids)
        costs = {
            address: self._load_weight * load - saved.get(address, 0)
            for address, load in loads.items()
        }
        least = min(costs.values())
        return preferred([each for each, cost in costs.items() if cost == least], token_ids)
