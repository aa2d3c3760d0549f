"""`check_integrity` notices each kind of wrong accounting of the blocks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inference.scheduler.block_manager import BlockManager, IntegrityError
from inference.scheduler.sequence import Sequence
from tests.inference.stub_runner import make_sequence


def _lose_a_sequence(manager: BlockManager, sequences: list[Sequence]) -> None:
    sequences.clear()


def _hold_a_block_twice(manager: BlockManager, sequences: list[Sequence]) -> None:
    sequences[0].block_table.append(sequences[0].block_table[0])


def _lose_a_free_block(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._free.pop()


def _free_a_block_twice(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._free[-1] = manager._free[-2]


def _free_a_used_block(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._free[-1] = sequences[0].block_table[-1]


def _free_a_cached_block(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._free[-1] = next(iter(manager._block_by_hash.values()))


def _change_a_hash(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._hashes[next(iter(manager._block_by_hash.values()))] = b"another"


def _forget_a_hash(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._block_by_hash.popitem()


def _announce_nothing(manager: BlockManager, sequences: list[Sequence]) -> None:
    manager._announced[b"nobody's"] += 1


@pytest.mark.parametrize(
    "spoil",
    [
        _lose_a_sequence,
        _hold_a_block_twice,
        _lose_a_free_block,
        _free_a_block_twice,
        _free_a_used_block,
        _free_a_cached_block,
        _change_a_hash,
        _forget_a_hash,
        _announce_nothing,
    ],
)
def test_wrong_accounting_is_noticed(
    spoil: Callable[[BlockManager, list[Sequence]], None],
) -> None:
    """Each data structure of the block manager is checked."""
    manager = BlockManager(8, 4)
    sequences = [make_sequence(name, [1] * 9) for name in "ab"]
    for sequence in sequences:
        assert manager.allocate(sequence)
        sequence.num_computed_tokens = 8
        manager.commit(sequence)
    manager.free(sequences.pop())
    manager.check_integrity(sequences)
    spoil(manager, sequences)
    with pytest.raises(IntegrityError):
        manager.check_integrity(sequences)
