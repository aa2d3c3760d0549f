"""What the model is asked to compute in one step."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Tokens of several sequences as one flat batch; a sequence's rows lie together, in order."""

    token_ids: list[int]
    positions: list[int]
    """Of each token in its sequence, counted from 0."""
    begins: list[int]
    """First row of each sequence, and at the end the number of rows."""
    block_tables: list[Rows[int]]
    """Of each sequence: blocks for at least its tokens up to the end of its rows here."""
    outputs: list[int]
    """Rows whose logits are wanted, ascending."""
    drawn: Tensor | None = None
    """[num_tokens] ids in int64 on the device, instead of `token_ids`, which nobody knows yet."""
    is_invariant: bool = False
    """Each token is to get the same numbers whatever else is in its step."""

    @property
    def num_sequences(self) -> int:
        return len(self.block_tables)

    def context(self, sequence: int) -> int:
        """Tokens of a sequence up to the end of its rows here."""
        return self.positions[self.begins[sequence + 1] - 1] + 1


def pack(sequences: Rows[tuple[int, Rows[int]]], block_size: int, *, outputs: bool) -> Step:
    """A step of sequences whose blocks lie one behind the other, in a cache of their own.

    Of each: how many tokens it has already, and its rows' tokens. `outputs`: all are wanted, or
    none.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    begins = [0]
    tables: list[Rows[int]] = []
    num_blocks = 0
    for before, rows in sequences:
        end = before + len(rows)
        token_ids += rows
        positions += range(before, end)
        begins.append(len(positions))
        first, num_blocks = num_blocks, num_blocks - (-end // block_size)
        tables.append(range(first, num_blocks))
    return Step(
        token_ids=token_ids,
        positions=positions,
        begins=begins,
        block_tables=tables,
        outputs=list(range(len(positions))) if outputs else [],
    )
