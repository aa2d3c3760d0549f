"""Describes one engine step in so many, for whoever shows steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from inference.engine.interface import Step
from inference.scheduler.batch import Batch
from inference.scheduler.scheduler import Scheduler


class StepWatch:
    """Told of each step in its three moments, by the engine's own thread."""

    def __init__(self, every: int, tell: Callable[[Step], None]) -> None:
        """`tell` gets every `every`-th step, once it has ended; 0: none."""
        self._every = every
        self._tell = tell
        self._number = 0
        self._num_preemptions = 0
        self._describe: Callable[[bool], Step] | None = None

    def begins(self, scheduler: Scheduler) -> None:
        """A step is about to be scheduled."""
        self._number += 1
        self._num_preemptions = scheduler.num_preemptions

    def runs(self, batch: Batch, scheduler: Scheduler) -> None:
        """The batch is about to be computed; what it holds is known only now."""
        self._describe = None
        if not self._every or self._number % self._every:
            return
        number, start = self._number, batch.start
        request_ids = tuple(sequence.request_id for sequence in batch.sequences)
        num_tokens = sum(sequence.num_scheduled_tokens for sequence in batch.sequences)
        num_decodes = sum(
            sequence.num_scheduled_tokens
            for sequence in batch.sequences
            if sequence.num_uncomputed_tokens == 1 and sequence.first_token_time is not None
        )
        blocks = scheduler.block_manager
        kv_usage = blocks.num_used_blocks / blocks.num_blocks
        num_waiting = scheduler.num_waiting
        num_preemptions = scheduler.num_preemptions - self._num_preemptions

        def describe(failed: bool) -> Step:
            return Step(
                number=number,
                start=start,
                end=time.monotonic(),
                request_ids=request_ids,
                num_prefill_tokens=num_tokens - num_decodes,
                num_decode_tokens=num_decodes,
                num_waiting=num_waiting,
                kv_usage=kv_usage,
                num_preemptions=num_preemptions,
                failed=failed,
            )

        self._describe = describe

    def ended(self, failed: bool) -> None:
        """The step is over."""
        if self._describe is not None:
            self._tell(self._describe(failed))
            self._describe = None
