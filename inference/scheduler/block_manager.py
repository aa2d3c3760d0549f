"""Allocation of the KV cache's blocks to sequences, and the prefix cache.

A block is in exactly one of three places:

    free ──allocate──▶ used (ref_count > 0) ──free──▶ free      without a hash
                          ▲                    └────▶ cached    with a hash: still reusable
                          └──── prefix hit ◀──────────┘
    cached ──evicted, least recently used first──▶ used

Handles ids only; the KV cache has the tensors. Every operation is O(1) per block.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b
from itertools import takewhile

from inference.scheduler.block_events import BlockEvent, RemovedBlock, StoredBlock
from inference.scheduler.sequence import Sequence

_HASH_BYTES = 16
_ROOT_HASH = b""
_SEEDED_ROOT_HASH = b"seeded"


class IntegrityError(RuntimeError):
    """The accounting of the blocks is inconsistent, which is a bug."""


class BlockManager:
    """Allocates KV blocks to sequences, with reference counts and a prefix cache.

    A full, computed block is identified by a chained hash of its token ids and all ids before them,
    so that a later sequence with the same prefix reuses the block. Only full blocks are shared, so
    a sequence never writes into a shared block.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        enable_prefix_cache: bool = True,
        separates_seeded: bool = False,
    ) -> None:
        """`separates_seeded`: seeded sequences share blocks with seeded sequences only."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._enable_prefix_cache = enable_prefix_cache
        self._separates_seeded = separates_seeded
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_by_hash: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._announced: Counter[bytes] = Counter()
        """Number of live sequences that are computing each block, by its future hash."""
        self._unshared: set[int] = set()
        self._events: list[BlockEvent] | None = None
        self.num_claimed_blocks = 0
        """Blocks that an input to embed has waited for; waiting sequences leave them free."""

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, including cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def num_used_blocks(self) -> int:
        return self.num_blocks - self.num_free_blocks

    @property
    def num_unshared_blocks(self) -> int:
        """Blocks that inputs to embed hold."""
        return len(self._unshared)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens in the prefix cache."""
        return len(self._block_by_hash) * self.block_size

    def record_events(self) -> None:
        """Record the blocks that enter and leave the prefix cache from now on."""
        if self._events is None:
            self._events = []

    def take_events(self) -> list[BlockEvent]:
        """The changes of the prefix cache since the last call; none unless they are recorded."""
        if not self._events:
            return []
        events, self._events = self._events, []
        return events

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, sequence: Sequence, *, num_reserved_blocks: int = 0) -> bool:
        """Allocate blocks for all tokens of a sequence, cached ones first; False if too few.

        Sets `num_computed_tokens` to the tokens that the prefix cache had; at least one token is
        left to compute, because its logits are needed. `num_reserved_blocks` must stay free.
        Changes nothing if it returns False.
        """
        assert not sequence.block_table, f"{sequence!r} already has blocks"
        hits = self._find_cached(sequence)
        num_new_blocks = self.num_blocks_for(sequence.num_tokens) - len(hits)
        num_revived = sum(1 for block in hits if self._ref_counts[block] == 0)
        if num_new_blocks + num_revived + num_reserved_blocks > self.num_free_blocks:
            return False
        for block in hits:
            self._take_cached(block)
        sequence.block_table.extend(hits)
        sequence.block_table.extend(self._take_free() for _ in range(num_new_blocks))
        sequence.num_computed_tokens = len(hits) * self.block_size
        sequence.num_committed_blocks = len(hits)
        self._announce(sequence)
        return True

    def is_worth_waiting(self, sequence: Sequence) -> bool:
        """Whether running sequences are computing at least half of the blocks that it needs.

        Then it is cheaper to wait until these blocks are in the prefix cache.
        """
        if not self._announced or sequence.awaits_prompt_logprobs:
            return False
        num_hits = len(self._find_cached(sequence))
        num_full_blocks = (sequence.num_tokens - 1) // self.block_size
        self._extend_hashes(sequence, num_full_blocks)
        coming = takewhile(
            self._announced.__contains__, sequence.block_hashes[num_hits:num_full_blocks]
        )
        num_missing = self.num_blocks_for(sequence.num_tokens) - num_hits
        return 2 * sum(1 for _ in coming) >= num_missing

    def extend(self, sequence: Sequence, num_ahead: int = 0) -> bool:
        """Ensure a block for the last token and `num_ahead` more, at most a block's size.

        False if a block is needed and none is free.
        """
        if len(sequence.block_table) * self.block_size >= sequence.num_tokens + num_ahead:
            return True
        if not self.num_free_blocks:
            return False
        sequence.block_table.append(self._take_free())
        return True

    def allocate_drafts(self, sequence: Sequence, most: int, *, num_reserved_blocks: int) -> int:
        """Allocate blocks for up to `most` draft tokens; returns how many of them have room.

        Leaves `num_reserved_blocks` free for tokens that are certain.
        """
        num_blocks = self.num_blocks_for(sequence.num_tokens + most) - len(sequence.block_table)
        num_spare = max(0, self.num_free_blocks - num_reserved_blocks)
        sequence.block_table.extend(self._take_free() for _ in range(min(num_blocks, num_spare)))
        return min(most, len(sequence.block_table) * self.block_size - sequence.num_tokens)

    def allocate_unshared(self, num_blocks: int) -> list[int] | None:
        """Allocate blocks for an input to embed, outside the prefix cache; None if too few.

        Return them with `free_unshared`.
        """
        if num_blocks > self.num_free_blocks:
            return None
        blocks = [self._take_free() for _ in range(num_blocks)]
        self._unshared.update(blocks)
        return blocks

    def free_unshared(self, blocks: Iterable[int]) -> None:
        """Free blocks from `allocate_unshared`."""
        for block in blocks:
            self._unshared.remove(block)
            self._ref_counts[block] = 0
            self._free.append(block)

    def commit(self, sequence: Sequence) -> None:
        """Add the sequence's full, computed blocks to the prefix cache; call after a step."""
        if not self._enable_prefix_cache:
            return
        num_full_blocks = sequence.num_computed_tokens // self.block_size
        if sequence.num_committed_blocks >= num_full_blocks:
            return
        self._extend_hashes(sequence, num_full_blocks)
        self._withdraw(sequence, num_full_blocks)
        for index in range(sequence.num_committed_blocks, num_full_blocks):
            block, block_hash = sequence.block_table[index], sequence.block_hashes[index]
            # Two sequences may have computed the same block at once; the first one is kept.
            if block_hash not in self._block_by_hash:
                self._block_by_hash[block_hash] = block
                self._hashes[block] = block_hash
                if self._events is not None:
                    self._record_stored(self._events, sequence, index)
        sequence.num_committed_blocks = num_full_blocks

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Free all blocks of a sequence; with `forget`, remove them from the prefix cache.

        Does nothing for a sequence without blocks.
        """
        self._withdraw(sequence, sequence.num_announced_blocks)
        # Last block first, so that a prefix is evicted from its end and stays usable.
        for block in reversed(sequence.block_table):
            if forget:
                self._forget(block)
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None
        del sequence.block_table[:]
        sequence.num_computed_tokens = 0
        sequence.num_committed_blocks = 0
        sequence.num_announced_blocks = 0

    def exclusive_blocks(self, sequences: Iterable[Sequence]) -> list[int]:
        """The blocks of these sequences that no other sequence holds."""
        return [
            block
            for sequence in sequences
            for block in sequence.block_table
            if self._ref_counts[block] == 1
        ]

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise `IntegrityError` unless the accounting matches the block tables of `sequences`.

        `sequences` are all live ones; inputs to embed hold the unshared blocks. Loops over all
        blocks run in C: a GPU's cache has tens of thousands.
        """
        sequences = list(sequences)
        used = Counter(block for sequence in sequences for block in sequence.block_table)
        used.update(self._unshared)
        wrong = [block for block, count in used.items() if self._ref_counts[block] != count]
        if wrong or self.num_blocks - self._ref_counts.count(0) != len(used):
            lost = (b for b, count in enumerate(self._ref_counts) if count and b not in used)
            raise IntegrityError(f"reference counts of blocks {[*wrong, *lost][:8]} are wrong")
        free = set(self._free)
        num_free, num_cached = len(self._free), len(self._cached)
        if len(free) != num_free or not free.isdisjoint(self._cached):
            raise IntegrityError("a block is free twice")
        if num_free + num_cached + len(used) != self.num_blocks:
            raise IntegrityError(
                f"{num_free} free + {num_cached} cached + {len(used)} used blocks are not "
                f"{self.num_blocks}"
            )
        if not free.isdisjoint(used) or not self._cached.keys().isdisjoint(used):
            raise IntegrityError("a block is both used and free")
        if not free.isdisjoint(self._block_by_hash.values()):
            raise IntegrityError("a free block has a hash")
        if any(self._hashes[block] != key for key, block in self._block_by_hash.items()):
            raise IntegrityError("the prefix cache has a block under a wrong hash")
        announced = Counter(key for sequence in sequences for key in _announced_by(sequence))
        if announced != self._announced:
            raise IntegrityError("blocks are announced that no sequence computes")
        if self.num_blocks - self._hashes.count(None) != len(self._block_by_hash):
            raise IntegrityError("a hashed block is missing from the prefix cache")

    def _find_cached(self, sequence: Sequence) -> list[int]:
        if not self._enable_prefix_cache:
            return []
        num_full_blocks = (sequence.num_tokens - 1) // self.block_size
        if sequence.awaits_prompt_logprobs:
            # The missing log probabilities need logits, so those positions must be computed.
            num_given = len(sequence.prompt_logprobs or ())
            num_full_blocks = min(num_full_blocks, num_given // self.block_size)
        hits: list[int] = []
        for index in range(num_full_blocks):
            self._extend_hashes(sequence, index + 1)
            block = self._block_by_hash.get(sequence.block_hashes[index])
            if block is None:
                break
            hits.append(block)
        return hits

    def _announce(self, sequence: Sequence) -> None:
        """Register the blocks that the sequence is about to compute."""
        if self._enable_prefix_cache:
            sequence.num_announced_blocks = sequence.num_tokens // self.block_size
            self._extend_hashes(sequence, sequence.num_announced_blocks)
            self._announced.update(_announced_by(sequence))

    def _withdraw(self, sequence: Sequence, end: int) -> None:
        """Unregister the announced blocks before `end`: they are computed or abandoned."""
        for block_hash in _announced_by(sequence, end):
            self._announced[block_hash] -= 1
            if not self._announced[block_hash]:
                del self._announced[block_hash]

    def _extend_hashes(self, sequence: Sequence, num_full_blocks: int) -> None:
        hashes = sequence.block_hashes
        for index in range(len(hashes), num_full_blocks):
            start = index * self.block_size
            ids = sequence.token_ids[start : start + self.block_size].tobytes()
            parent = hashes[-1] if hashes else self._root(sequence)
            # A cryptographic hash: a collision would expose one client's context to another.
            hashes.append(blake2b(parent + ids, digest_size=_HASH_BYTES).digest())

    def _root(self, sequence: Sequence) -> bytes:
        root = _ROOT_HASH
        if self._separates_seeded and sequence.is_seeded:
            root = _SEEDED_ROOT_HASH
        return root if sequence.adapter is None else root + sequence.adapter.root_hash

    def _record_stored(self, events: list[BlockEvent], sequence: Sequence, index: int) -> None:
        if self._root(sequence) != _ROOT_HASH:
            return  # other sequences with the same tokens cannot use the block
        start = index * self.block_size
        parent = sequence.block_hashes[index - 1] if index else None
        token_ids = sequence.token_ids[start : start + self.block_size]
        events.append(StoredBlock(sequence.block_hashes[index], parent, token_ids, index))

    def _take_cached(self, block: int) -> None:
        if self._ref_counts[block] == 0:
            del self._cached[block]
        self._ref_counts[block] += 1

    def _take_free(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
        self._ref_counts[block] = 1
        return block

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._block_by_hash[block_hash]
            self._hashes[block] = None
            if self._events is not None:
                self._events.append(RemovedBlock(block_hash))


def _announced_by(sequence: Sequence, end: int | None = None) -> list[bytes]:
    """The hashes of the blocks before `end` that a sequence has announced and not committed."""
    last = sequence.num_announced_blocks
    if end is not None:
        last = min(last, end)
    return sequence.block_hashes[sequence.num_committed_blocks : last]
