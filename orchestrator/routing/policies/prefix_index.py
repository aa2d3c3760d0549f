"""Which blocks of tokens are in which replica's prefix cache, as far as is known.

A block is named by a chained hash of its tokens and all tokens before it. For each replica the
blocks are in the order of their last use, a prefix's last block before its first, as engines evict
them. Hashes are 64 bits and not secret: a collision costs a wrong guess, never a wrong token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

BLOCK_TOKENS = 32
"""A multiple of the block size of most engines (16)."""

MAX_PROMPT_BLOCKS = 4096
"""Blocks of a prompt that are looked at: beyond 131,072 tokens the choice does not change."""

DEFAULT_MAX_BLOCKS = 262_144


def block_hashes(token_ids: Sequence[int]) -> list[int]:
    """The names of the full blocks of a prompt."""
    ids = tuple(token_ids[: MAX_PROMPT_BLOCKS * BLOCK_TOKENS])
    hashes: list[int] = []
    block_hash = 0
    for end in range(BLOCK_TOKENS, len(ids) + 1, BLOCK_TOKENS):
        block_hash = next_hash(block_hash, ids[end - BLOCK_TOKENS : end])
        hashes.append(block_hash)
    return hashes


def next_hash(parent: int, token_ids: tuple[int, ...]) -> int:
    """The name of a block after the block `parent`; 0 is the parent of a first block."""
    return hash((parent, token_ids))


class PrefixIndex:
    """Bounded memory: `max_blocks` over all replicas, in equal shares; about 150 bytes a block."""

    def __init__(self, max_blocks: int = DEFAULT_MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._blocks: dict[str, OrderedDict[int, None]] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks that are known, over all replicas."""
        return sum(map(len, self._blocks.values()))

    def num_cached(self, address: str, hashes: Sequence[int]) -> int:
        """How many leading blocks of a prompt the replica has."""
        blocks = self._blocks.get(address)
        if not blocks or not hashes or hashes[0] not in blocks:
            return 0
        # A block is there only if those before it are, so the first missing one can be searched.
        return bisect_left(hashes, True, key=lambda each: each not in blocks)

    def add(self, address: str, hashes: Sequence[int]) -> None:
        """The replica has these blocks of one prompt now, the least recently used ones give way."""
        blocks = self._blocks.setdefault(address, OrderedDict())
        for block_hash in reversed(hashes):
            blocks[block_hash] = None
            blocks.move_to_end(block_hash)
        most = max(1, self._max_blocks // len(self._blocks))
        while len(blocks) > most:
            blocks.popitem(last=False)

    def remove(self, address: str, block_hash: int) -> None:
        """The replica has evicted a block."""
        blocks = self._blocks.get(address)
        if blocks is not None:
            blocks.pop(block_hash, None)

    def forget(self, address: str) -> None:
        """Nothing is known of a replica any more."""
        self._blocks.pop(address, None)
