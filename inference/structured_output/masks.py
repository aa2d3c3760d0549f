"""Which tokens each constrained row of a step may draw, computed while the model runs."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from inference.scheduler.scheduler_output import ScheduledSequence

Words = NDArray[np.int32]
"""[num_rows, vocab_size / 32, rounded up]: bit i of word w is token 32 w + i, set where allowed."""


class Masks(NamedTuple):
    """The constrained rows of a step, and a mask for each."""

    rows: list[int]
    words: Words


class MaskWorker:
    """Computes masks in a thread of its own, which ends with it.

    The library releases the interpreter's lock: the forward pass goes on beside it.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_words = -(-vocab_size // 32)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._executor: LLExecutor | None = None

    def start(self, sampling: Rows[ScheduledSequence]) -> Future[Masks] | None:
        """Begins with the masks of a step that samples these; None where no row needs one.

        The sequences must not change before the result is there.
        """
        if all(scheduled.sequence.matcher is None for scheduled in sampling):
            return None
        return self._thread.submit(self._compute, sampling)

    def _compute(self, sampling: Rows[ScheduledSequence]) -> Masks:
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
        # All ones: behind a draft that breaks the form nothing is filled in, or ever drawn.
        words: Words = np.full((len(rows), self._num_words), -1, dtype=np.int32)
        place = words.ctypes.data, self._num_words * 4, len(rows)
        if plain:
            self._executor.unsafe_compute_mask_ptr(plain, *place)
        if drafted:
            self._executor.unsafe_compute_mask_ptr_with_draft_token(drafted, *place)
        self._finish(sampling, words)
        return Masks(rows, words)

    def _finish(self, sampling: Rows[ScheduledSequence], words: Words) -> None:
        begin = 0
        for scheduled in sampling:
            sequence = scheduled.sequence
            if sequence.matcher is None:
                continue
            end = begin + 1 + len(scheduled.draft_token_ids)
            if sequence.matcher.error is not None:
                words[begin:end] = 0  # nothing can be drawn: the sequence ends with the error
            for position, row in enumerate(range(begin, end), sequence.num_completion_tokens):
                if position < sequence.params.min_tokens:
                    _forbid(words[row], sequence.stop_token_ids)
            begin = end


def _forbid(words: NDArray[np.int32], token_ids: frozenset[int]) -> None:
    """Takes tokens out of a mask, unless nothing else is in it: then the form is complete."""
    others = words.view(np.uint32).copy()
    for token_id in token_ids:
        word, bit = divmod(token_id, 32)
        others[word] &= np.uint32(0xFFFFFFFF ^ (1 << bit))
    if others.any():
        words[:] = others.view(np.int32)
