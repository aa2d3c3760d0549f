"""What a request wants added to single logits: bias, penalties, no end before `min_tokens`.

Each is one operation over all rows that want it, at the tokens concerned only: it costs nothing
where nobody asks, and never a pass over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.runner.staging import to_device
from inference.scheduler.scheduler_output import Row


class _Places:
    """Logits of some rows, and a value for each."""

    def __init__(self) -> None:
        self._rows: list[NDArray[np.int64]] = []
        self._ids: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._ids)

    def add(self, row: int, ids: NDArray[np.int64], values: Rows[float] | float) -> None:
        """Of this row; one value for all of its ids, or one each."""
        self._rows.append(np.full(len(ids), row))
        self._ids.append(ids)
        self._values.append(np.broadcast_to(np.array(values, dtype=np.float32), len(ids)))

    def tensors(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Where they stand, as an index of logits, and the values."""
        places = np.stack([np.concatenate(self._rows), np.concatenate(self._ids)])
        rows, ids = to_device(places, device)
        return (rows, ids), to_device(np.concatenate(self._values), device)


def adjust(logits: Tensor, rows: Rows[Row]) -> None:
    """Changes `logits` [num_rows, vocab_size], float32, as the rows' params ask for."""
    _bias(logits, rows)
    _penalize(logits, rows)


def _bias(logits: Tensor, rows: Rows[Row]) -> None:
    added = _Places()
    for number, row in enumerate(rows):
        sequence, params = row.sequence, row.sequence.params
        if params.logit_bias:
            added.add(number, np.array(list(params.logit_bias)), list(params.logit_bias.values()))
        if sequence.matcher is not None:
            continue  # the mask sees to it, and knows where nothing but the end is left
        if row.position < params.min_tokens and sequence.stop_token_ids:
            added.add(number, np.array(list(sequence.stop_token_ids)), -math.inf)
    if added:
        index, values = added.tensors(logits.device)
        logits.index_put_(index, values, accumulate=True)  # a stop token may have a bias as well


def _penalize(logits: Tensor, rows: Rows[Row]) -> None:
    repetition, presence, frequency = _Places(), _Places(), _Places()
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
    # A token that occurs twice is read, and then written, twice with the same value; but where
    # values accumulate it counts as often as it occurs.
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
