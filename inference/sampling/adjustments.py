"""Adjustments of single logits before sampling: logit bias, penalties, `min_tokens`.

Each adjustment is one scatter operation over all rows that request it, at the affected tokens
only: a batch without such requests pays nothing, and there is no pass over the vocabulary.
"""

from __future__ import annotations

import math
from collections import abc

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.runner.staging import to_device
from inference.scheduler.scheduler_output import Row


class _SparseLogits:
    """Coordinates (row, token id) of some logits, with one value for each."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._ids: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, row: int, ids: NDArray[np.int64], values: abc.Sequence[float] | float) -> None:
        """Adds token ids of a row, with one value for all of them or one value each."""
        self._rows.append(np.full(len(ids), row))
        self._ids.append(ids)
        self._values.append(np.broadcast_to(np.array(values, dtype=np.float32), len(ids)))

    def tensors(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The coordinates as an index into the logits, and the values."""
        coordinates = np.stack([np.concatenate(self._rows), np.concatenate(self._ids)])
        rows, ids = to_device(coordinates, device)
        return (rows, ids), to_device(np.concatenate(self._values), device)


def adjust(logits: Tensor, rows: abc.Sequence[Row]) -> None:
    """Applies bias, `min_tokens` and penalties to `logits` [num_rows, vocab_size], in place."""
    _bias(logits, rows)
    _penalize(logits, rows)


def _bias(logits: Tensor, rows: abc.Sequence[Row]) -> None:
    """Adds logit biases, and minus infinity to stop tokens before `min_tokens`."""
    added = _SparseLogits()
    for number, row in enumerate(rows):
        sequence, params = row.sequence, row.sequence.params
        if params.logit_bias:
            added.add(number, np.array(list(params.logit_bias)), list(params.logit_bias.values()))
        if sequence.matcher is not None:
            continue  # `MaskWorker` applies `min_tokens`: it knows when only the end is allowed
        if row.position < params.min_tokens and sequence.stop_token_ids:
            added.add(number, np.array(list(sequence.stop_token_ids)), -math.inf)
    if added:
        index, values = added.tensors(logits.device)
        logits.index_put_(index, values, accumulate=True)  # a stop token may have a bias as well


def _penalize(logits: Tensor, rows: abc.Sequence[Row]) -> None:
    """Applies repetition, presence and frequency penalties."""
    repetition, presence, frequency = _SparseLogits(), _SparseLogits(), _SparseLogits()
    for number, row in enumerate(rows):
        params = row.sequence.params
        if not params.has_penalties:
            continue
        ids = row.token_ids
        completion = ids[row.sequence.num_prompt_tokens :]
        if params.repetition_penalty != 1.0:
            repetition.add(number, ids, params.repetition_penalty)
        if params.presence_penalty and len(completion):
            presence.add(number, completion, params.presence_penalty)
        if params.frequency_penalty and len(completion):
            frequency.add(number, completion, -params.frequency_penalty)
    # A token that occurs twice has two equal entries. Repetition and presence write the same
    # value twice; the frequency penalty accumulates, so it counts each occurrence.
    if repetition:
        index, factors = repetition.tensors(logits.device)
        values = logits[index]
        logits[index] = torch.where(values > 0, values / factors, values * factors)
    if presence:
        index, penalties = presence.tensors(logits.device)
        logits[index] -= penalties
    if frequency:
        index, penalties = frequency.tensors(logits.device)
        logits.index_put_(index, penalties, accumulate=True)
