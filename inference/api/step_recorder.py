"""Builds a `StepRecord` of every n-th engine step, for spans and for metrics with exemplars."""

from __future__ import annotations

import time
from collections.abc import Callable

from inference.engine.interface import StepRecord
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.scheduler_output import SchedulerOutput


class StepRecorder:
    """Observes each step at three moments, in the engine's thread."""

    def __init__(self, every: int, record: Callable[[StepRecord], None]) -> None:
        """`record` is called with every `every`-th step when it has ended; 0: never."""
        self._every = every
        self._record = record
        self._number = 0
        self._num_preemptions = 0
        self._describe: Callable[[bool], StepRecord] | None = None

    @property
    def describes(self) -> bool:
        """Whether the step that was scheduled last is recorded."""
        return self._describe is not None

    def before_schedule(self, scheduler: Scheduler) -> None:
        """Call before a step is scheduled."""
        self._number += 1
        self._num_preemptions = scheduler.num_preemptions

    def scheduled(self, plan: SchedulerOutput, scheduler: Scheduler) -> None:
        """Call when the step is scheduled and before the sequences change."""
        self._describe = None
        if not self._every or self._number % self._every:
            return
        number = self._number
        live = plan.live
        request_ids = tuple(scheduled.sequence.request_id for scheduled in live)
        num_tokens = sum(scheduled.num_tokens for scheduled in live)
        num_decodes = sum(
            scheduled.num_tokens
            for scheduled in live
            if scheduled.sequence.num_uncomputed_tokens == 1
            and scheduled.sequence.first_token_time is not None
        )
        blocks = scheduler.block_manager
        kv_usage = blocks.num_used_blocks / blocks.num_blocks
        num_waiting = scheduler.num_waiting
        num_preemptions = scheduler.num_preemptions - self._num_preemptions

        def describe(failed: bool) -> StepRecord:
            return StepRecord(
                number=number,
                start=plan.start,
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
        """Call when the step has ended."""
        if self._describe is not None:
            self._record(self._describe(failed))
            self._describe = None
