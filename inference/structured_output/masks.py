"""Token bitmasks of the constrained rows of a step, computed while the model runs."""

from __future__ import annotations

from collections import abc
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from inference.scheduler.scheduler_output import ScheduledSequence

Bitmasks = NDArray[np.int32]
"""[num_rows, vocab_size / 32, rounded up]: bit i of column c is token 32 c + i, 1 if allowed."""


class Masks(NamedTuple):
    """The constrained rows of a step, with one bitmask for each."""

    rows: list[int]
    bitmasks: Bitmasks


class MaskWorker:
    """Computes bitmasks in a background thread, which ends with this object.

    The library releases the GIL, so the forward pass runs at the same time.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_columns = -(-vocab_size // 32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None

    def start(self, sampling: abc.Sequence[ScheduledSequence]) -> Future[Masks] | None:
        """Starts computing the masks of a step that samples these sequences.

        Returns None if no sequence is constrained. The sequences must not change before the
        result is available.
        """
        if all(scheduled.sequence.matcher is None for scheduled in sampling):
            return None
        return self._thread.submit(self._compute, sampling)

    def _compute(self, sampling: abc.Sequence[ScheduledSequence]) -> Masks:
        if self._executor is None:
            self._executor = LLExecutor()
        rows: list[int] = []
        plain: list[tuple[LLMatcher, int]] = []
        drafted: list[tuple[LLMatcher, int, list[int]]] = []
        row = 0
        for scheduled in sampling:
            sequence = scheduled.sequence
            num_rows = 1 + len(scheduled.draft_token_ids)
            if sequence.matcher is not None:
                completion = sequence.token_ids[sequence.num_prompt_tokens :]
                sequence.matcher.advance(completion)
                if num_rows == 1:
                    plain.append((sequence.matcher.raw, len(rows)))
                else:
                    drafts = list(scheduled.draft_token_ids)
                    drafted.append((sequence.matcher.raw, len(rows), drafts))
                rows += range(row, row + num_rows)
            row += num_rows
        # All ones: the library leaves the rows after an invalid draft unset, and the sampled tokens
        # of those rows are discarded.
        bitmasks: Bitmasks = np.full((len(rows), self._num_columns), -1, dtype=np.int32)
        buffer = bitmasks.ctypes.data, self._num_columns * 4, len(rows)
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, *buffer)
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *buffer)
        self._apply_errors_and_min_tokens(sampling, bitmasks)
        return Masks(rows, bitmasks)

    def _apply_errors_and_min_tokens(
        self, sampling: abc.Sequence[ScheduledSequence], bitmasks: Bitmasks
    ) -> None:
        begin = 0
        for scheduled in sampling:
            sequence = scheduled.sequence
            if sequence.matcher is None:
                continue
            end = begin + 1 + len(scheduled.draft_token_ids)
            if sequence.matcher.error is not None:
                bitmasks[begin:end] = 0  # no token is allowed: the sequence ends with the error
            for position, row in enumerate(range(begin, end), sequence.num_completion_tokens):
                if position < sequence.params.min_tokens:
                    _forbid(bitmasks[row], sequence.stop_token_ids)
            begin = end


def _forbid(bitmask: NDArray[np.int32], token_ids: frozenset[int]) -> None:
    """Clears tokens in a bitmask, unless it allows no others: then the output is complete."""
    others = bitmask.view(np.uint32).copy()
    for token_id in token_ids:
        column, bit = divmod(token_id, 32)
        others[column] &= np.uint32(0xFFFFFFFF ^ (1 << bit))
    if others.any():
        bitmask[:] = others.view(np.int32)
