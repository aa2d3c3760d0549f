"""Async scheduling: plan a step before the tokens of the step before it are known.

See docs/decisions/0012. Each sequence continues from the token that the running step is about to
sample, so the next step may not depend on that token: no draft tokens, no constraint, no penalty.
If the token turns out to be a stop token, the sequence's result of the next step is discarded.
"""

from __future__ import annotations

from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler_output import ScheduledSequence, SchedulerOutput
from inference.scheduler.speculation import Drafter


class AsyncScheduling:
    """The part of the scheduler that plans overlapped steps."""

    def __init__(self, block_manager: BlockManager, drafter: Drafter, max_num_seqs: int) -> None:
        self._block_manager = block_manager
        self._drafter = drafter
        self._max_num_seqs = max_num_seqs

    def schedule_next(
        self, plan: SchedulerOutput, num_running: int, num_waiting: int
    ) -> SchedulerOutput | None:
        """Plan the step after `plan`, which is still running; None if that needs its tokens.

        Also None if the next step should take in other sequences: one of `num_running` that is
        not in `plan`, or one of `num_waiting` that fits. Allocates blocks, and changes nothing
        else: `adopt` updates the sequences.
        """
        scheduled: list[ScheduledSequence] = []
        previous_indices: list[int] = []
        num_live = 0
        for index, current in enumerate(plan.scheduled):
            sequence = current.sequence
            if sequence.finish is not None:
                continue
            if not self._is_predictable(current):
                return None
            num_live += 1
            if sequence.num_completion_tokens + 1 < sequence.max_tokens:
                scheduled.append(ScheduledSequence(sequence, 1, True))
                previous_indices.append(index)
        if num_live < num_running:
            return None
        if num_waiting and len(scheduled) < self._max_num_seqs:
            return None
        if not scheduled or not all(self._block_manager.extend(s.sequence, 1) for s in scheduled):
            return None
        return SchedulerOutput(scheduled, previous_indices=previous_indices)

    def adopt(self, plan: SchedulerOutput, now: float) -> SchedulerOutput:
        """Start an overlapped plan's step now that the step before it has ended."""
        batch_size = len(plan.scheduled)
        for current in plan.live:
            sequence = current.sequence
            sequence.num_steps += 1
            sequence.num_batched_sequences += batch_size
            self._drafter.skip(sequence)
        return SchedulerOutput(plan.scheduled, now, plan.previous_indices)

    def _is_predictable(self, current: ScheduledSequence) -> bool:
        """Whether the sequence's next step is the same whatever token it samples in this one."""
        sequence = current.sequence
        if not current.samples or current.draft_token_ids or self._drafter.will_search(sequence):
            return False
        return sequence.params.supports_async_scheduling and sequence.prompt_logprobs is None
