"""Which step follows one whose tokens nobody knows yet (docs/decisions/0055).

A sequence goes on with the token that it is about to get, so nothing in the next step may depend
on what that is: no drafts, no constraint, no penalty. A sequence that ends with it for another
reason than its length is in the step in vain.
"""

from __future__ import annotations

from inference.scheduler.batch import Batch
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.sequence import Sequence
from inference.scheduler.speculation import Drafter


class Foresight:
    """The part of the scheduler that looks one step ahead."""

    def __init__(self, block_manager: BlockManager, drafter: Drafter, max_num_seqs: int) -> None:
        self._block_manager = block_manager
        self._drafter = drafter
        self._max_num_seqs = max_num_seqs

    def behind(self, batch: Batch, num_running: int, num_waiting: int) -> Batch | None:
        """The batch behind one that is being computed; None where its tokens matter for that.

        So many are running now, and so many wait to be. Takes blocks, and changes nothing else.
        """
        sequences: list[Sequence] = []
        rows: list[int] = []
        num_live = 0
        for row, sequence in enumerate(batch.sequences):
            if sequence.finish is not None:
                continue
            if not sequence.samples_this_step or not self._is_foreseen(sequence):
                return None
            num_live += 1
            if sequence.num_completion_tokens + 1 < sequence.max_tokens:
                sequences.append(sequence)
                rows.append(row)
        if num_live < num_running:
            return None  # others want to be in it
        if num_waiting and len(sequences) < self._max_num_seqs:
            return None  # one of them may come in
        if not sequences or not all(self._block_manager.extend(s, 1) for s in sequences):
            return None
        return Batch(sequences, rows_before=rows)

    def take_over(self, batch: Batch, now: float) -> Batch:
        """Schedules those that are left of such a batch, now that the step before it is over."""
        for sequence in batch.live:
            sequence.num_scheduled_tokens = 1
            sequence.num_steps += 1
            sequence.num_batched_sequences += len(batch.sequences)
            self._drafter.skip(sequence)
        return Batch(batch.sequences, now, batch.rows_before)

    def _is_foreseen(self, sequence: Sequence) -> bool:
        """Whether its next step is the same whatever token it gets in this one."""
        if sequence.draft_token_ids or self._drafter.wants(sequence):
            return False
        return sequence.params.is_foreseen and sequence.prompt_logprobs is None
