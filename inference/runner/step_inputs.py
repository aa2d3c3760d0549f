"""Converts a step into tensors on the device, in one buffer with one asynchronous copy."""

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


class RowRange(NamedTuple):
    """Rows [begin, end) of a sequence that has `context` tokens after the step."""

    sequence: int
    begin: int
    end: int
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """The int32 tensors that a step's kernels read, and values that the host needs.

    Only `num_decodes`, `num_blocks` and `row_ranges` determine which kernels are launched and their
    grids. Without row ranges these do not depend on the tensors' contents, as CUDA graphs require.
    """

    token_ids: Tensor
    """[num_tokens]"""
    positions: Tensor
    """[num_tokens]: position of each token in its sequence."""
    slots: Tensor
    """[num_tokens]: the KV-cache slot of each token (the slot mapping)."""
    begins: Tensor
    """[num_sequences + 1]: first row of each sequence, and last the number of rows."""
    contexts: Tensor
    """[num_sequences]: number of tokens of each sequence up to its last row."""
    outputs: Tensor
    """[num_outputs]: rows whose logits are computed."""
    tables: Tensor
    """[num_sequences, most blocks]: block tables, padded with block 0."""
    num_decodes: int
    """Number of sequences with one row; they come first."""
    num_blocks: int
    """Most blocks that one of those sequences has."""
    row_ranges: tuple[RowRange, ...]
    """The sequences with several rows."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def make_inputs(step: Step, block_size: int, device: torch.device) -> StepInputs:
    """Make the tensors of a step."""
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
    if step.device_token_ids is not None:
        token_ids = step.device_token_ids.int()
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
        row_ranges=tuple(
            RowRange(sequence, step.begins[sequence], step.begins[sequence + 1], context)
            for sequence, context in enumerate(contexts.tolist())
            if sequence >= num_decodes
        ),
    )


def padded_tables(step: Step, width: int) -> Ids:
    """[num_sequences, width]: the block tables, truncated or padded with block 0."""
    tables = np.zeros((step.num_sequences, width), dtype=np.int32)
    for row, table in zip(tables, step.block_tables, strict=True):
        blocks = table[:width]
        row[: len(blocks)] = blocks
    return tables


def slots_of(blocks: Ids, positions: Ids, block_size: int) -> Ids:
    """The KV-cache slots of tokens at `positions`, which are in `blocks`."""
    return blocks * block_size + positions % block_size


def _leading_ones(num_rows: NDArray[np.signedinteger]) -> int:
    longer = np.flatnonzero(num_rows != 1)
    return int(longer[0]) if len(longer) else len(num_rows)
