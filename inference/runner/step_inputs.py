"""A step as tensors on the device: one buffer, one copy, no wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.runner.staging import to_device
from inference.runner.step import Step

Ids = NDArray[np.int32]


class Piece(NamedTuple):
    """Rows [begin, end) of the step, of a sequence that then has `context` tokens."""

    sequence: int
    begin: int
    end: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """What a step's kernels read, all int32; and what of it the host knows as well.

    Only `num_decodes`, `num_blocks` and `pieces` shape the work. Where there are no pieces, the
    same shape serves whatever the tensors hold: that is what a captured graph relies on.
    """

    token_ids: Tensor
    """[num_tokens]"""
    positions: Tensor
    """[num_tokens] in their sequences."""
    slots: Tensor
    """[num_tokens]: where each token's key and value go."""
    begins: Tensor
    """[num_sequences + 1]: first row of each sequence, and the number of rows."""
    contexts: Tensor
    """[num_sequences]: tokens of each up to the end of its rows here."""
    outputs: Tensor
    """[num_outputs] rows whose logits are wanted."""
    tables: Tensor
    """[num_sequences, most blocks], padded with block 0."""
    num_decodes: int
    """So many sequences at the beginning have one row each."""
    num_blocks: int
    """Blocks that the longest of those can have."""
    pieces: tuple[Piece, ...]
    """All other sequences."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def make_inputs(step: Step, block_size: int, device: torch.device) -> StepInputs:
    """The tensors of a step."""
    positions = np.array(step.positions, dtype=np.int32)
    begins = np.array(step.begins, dtype=np.int32)
    contexts = positions[begins[1:] - 1] + 1
    num_rows = np.diff(begins)
    num_decodes = _leading_ones(num_rows)
    tables = padded_tables(step, -(-int(contexts.max()) // block_size))
    sequences = np.repeat(np.arange(step.num_sequences), num_rows)
    fields = [
        np.array(step.token_ids, dtype=np.int32),
        positions,
        slots_of(tables[sequences, positions // block_size], positions, block_size),
        begins,
        contexts,
        np.array(step.outputs, dtype=np.int32),
    ]
    packed = to_device(np.concatenate([*fields, tables.ravel()]), device)
    *parts, flat_tables = torch.split(packed, [*map(len, fields), tables.size])
    token_ids, on_device, slots, row_begins, lengths, outputs = parts
    if step.drawn is not None:
        token_ids = step.drawn.int()
    longest = int(contexts[:num_decodes].max(initial=0))
    return StepInputs(
        token_ids=token_ids,
        positions=on_device,
        slots=slots,
        begins=row_begins,
        contexts=lengths,
        outputs=outputs,
        tables=flat_tables.view(tables.shape),
        num_decodes=num_decodes,
        num_blocks=-(-longest // block_size),
        pieces=tuple(
            Piece(sequence, step.begins[sequence], step.begins[sequence + 1], context)
            for sequence, context in enumerate(contexts.tolist())
            if sequence >= num_decodes
        ),
    )


def padded_tables(step: Step, width: int) -> Ids:
    """[num_sequences, width]: the block tables, cut or filled up with block 0."""
    tables = np.zeros((step.num_sequences, width), dtype=np.int32)
    for row, table in zip(tables, step.block_tables, strict=True):
        blocks = table[:width]
        row[: len(blocks)] = blocks
    return tables


def slots_of(blocks: Ids, positions: Ids, block_size: int) -> Ids:
    """Where tokens at these positions lie, whose blocks are these."""
    return blocks * block_size + positions % block_size


def _leading_ones(num_rows: NDArray[np.signedinteger]) -> int:
    longer = np.flatnonzero(num_rows != 1)
    return int(longer[0]) if len(longer) else len(num_rows)
