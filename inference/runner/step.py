"""The input of the model's forward pass, on the host."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from inference.model.lora.adapted import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The tokens of several sequences as one flat batch, in rows.

    The rows of a sequence are contiguous and in order.
    """

    token_ids: list[int]
    positions: list[int]
    """Position of each token in its sequence, from 0."""
    begins: list[int]
    """First row of each sequence, and last the number of rows."""
    block_tables: list[abc.Sequence[int]]
    """For each sequence: its blocks, at least for the tokens up to its last row."""
    outputs: list[int]
    """Rows whose logits are computed, ascending."""
    device_token_ids: Tensor | None = None
    """[num_tokens] int64 ids on the device, in place of `token_ids`, in an overlapped step."""
    adapters: abc.Sequence[Adapter | None] = ()
    """For each sequence: its LoRA adapter; empty if none has one."""
    is_invariant: bool = False
    """Whether to use kernels whose results do not depend on the rest of the batch."""

    @property
    def num_sequences(self) -> int:
        return len(self.block_tables)

    def context(self, sequence: int) -> int:
        """Number of tokens of a sequence up to its last row."""
        return self.positions[self.begins[sequence + 1] - 1] + 1


def pack(
    sequences: abc.Sequence[tuple[int, abc.Sequence[int]]], block_size: int, *, outputs: bool
) -> Step:
    """Make a step of sequences whose blocks are consecutive, for a separate cache.

    `sequences`: for each, the number of tokens that it already has, and the tokens to compute.
    `outputs`: whether the logits of all rows are computed, or of none.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    begins = [0]
    tables: list[abc.Sequence[int]] = []
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
