"""Keeps the index of prefixes equal to one engine's prefix cache, from the engine's reports."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS, PrefixIndex, next_hash

MAX_BLOCKS = 131_072
"""Blocks of one engine that are followed; the oldest ones are forgotten first."""


class _Block(NamedTuple):
    """An engine's block in terms of the index, whose blocks may be larger or smaller."""

    chain: int
    """The name of the last full block of the index up to here."""
    rest: tuple[int, ...]
    """The tokens after it."""
    names: tuple[int, ...]
    """The blocks of the index that this block completes."""


_ROOT = _Block(0, (), ())


class CacheMirror:
    """Implements `CacheChanges` for the replica at one address."""

    def __init__(self, index: PrefixIndex, address: str) -> None:
        self._index = index
        self._address = address
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    def stored(self, block_hash: int, parent: int | None, token_ids: tuple[int, ...]) -> None:
        """Adds the blocks of the index that the block completes."""
        before = _ROOT if parent is None else self._blocks.get(parent)
        if before is None:
            return  # stored before the subscription, or forgotten: its tokens are not known
        chain, rest, names = before.chain, before.rest + token_ids, []
        while len(rest) >= BLOCK_TOKENS:
            chain = next_hash(chain, rest[:BLOCK_TOKENS])
            rest = rest[BLOCK_TOKENS:]
            names.append(chain)
        self._blocks[block_hash] = _Block(chain, rest, tuple(names))
        self._index.add(self._address, names)
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)

    def removed(self, block_hash: int) -> None:
        """Removes the blocks of the index that it completed."""
        block = self._blocks.pop(block_hash, _ROOT)
        for name in block.names:
            self._index.remove(self._address, name)

    def clear(self) -> None:
        """Forgets the replica's blocks."""
        self._blocks.clear()
        self._index.forget(self._address)
