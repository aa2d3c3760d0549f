"""Changes of the prefix cache, for routers that choose a replica by its cached prefixes."""

from __future__ import annotations

from array import array
from typing import NamedTuple


class StoredBlock(NamedTuple):
    """A full block that entered the prefix cache."""

    block_hash: bytes
    parent: bytes | None
    """Hash of the block before it; None for the first block of a sequence."""
    token_ids: array[int]
    place: int
    """Number of blocks before it in its sequence."""


class RemovedBlock(NamedTuple):
    """A block that left the prefix cache."""

    block_hash: bytes


BlockEvent = StoredBlock | RemovedBlock
