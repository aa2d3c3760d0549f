"""Runs the engine's steps: schedule, launch, finish. Synchronous, or overlapped on a GPU.

    synchronous:  schedule 1, launch 1, finish 1, schedule 2, launch 2, finish 2
    overlapped:   schedule 1, launch 1, schedule 2, launch 2, finish 1, schedule 3, launch 3

In the overlapped loop (async scheduling) the device computes step 2 while the host handles the
tokens of step 1. It falls back to the synchronous order where step 2 depends on those tokens.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple, Protocol

from inference.api import metrics
from inference.api.step_recorder import StepRecorder
from inference.engine.errors import SequenceFailed, StepFailed
from inference.engine.watchdog import StepClock
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import IntegrityError
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.scheduler_output import SchedulerOutput
from inference.scheduler.sequence import Sequence
from inference.scheduler.speculation import accept
from inference.scheduler.step_result import StepOutput, StepResult

logger = logging.getLogger(__name__)

NUM_SUSPICIOUS_FAILURES = 3
"""After this many failed steps in a row the engine tests itself as soon as nothing else runs: the
requests themselves may be the cause."""

MAX_CONSECUTIVE_FAILURES = 12
"""An engine with this many failed steps in a row is broken."""


class PendingStep(Protocol):
    """A step that the runner has launched."""

    def result(self) -> StepResult:
        """Wait for the step's tokens. May raise anything."""
        ...


class Runner(Protocol):
    """Computes a step. The only part of the engine that touches tensors."""

    supports_async_scheduling: bool
    """Whether a step can be launched before the previous step's tokens are on the host."""

    def launch(self, plan: SchedulerOutput, previous: PendingStep | None = None) -> PendingStep:
        """Compute the planned tokens, and sample the next token after each last token and draft.

        `previous` is the step that an overlapped plan (with `previous_indices`) continues.
        Reads the sequences and changes none. May raise anything.
        """
        ...

    def recover(self, blocks: list[int]) -> None:
        """Clear the blocks of failed sequences; raises if no further step can work."""
        ...


class InFlightStep(NamedTuple):
    """A step that the runner is computing."""

    plan: SchedulerOutput
    pending: PendingStep
    start: float


class _FailedLaunch:
    """Implements `PendingStep` for a launch that raised."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> StepResult:
        raise self._error


class StepLoop:
    """Runs steps of a scheduler's sequences on a runner. For one thread."""

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.runner = runner
        self.healthy = True
        """False once no further step can be expected to work."""
        self.recorder: StepRecorder | None = None
        self.clock = StepClock()
        self._scheduler = scheduler
        self._num_consecutive_failures = 0
        self._in_flight: InFlightStep | None = None
        """The overlapped step that is being computed between two calls."""

    def run_synchronous(self) -> list[StepOutput]:
        """Schedule a step, run it and finish it."""
        plan = self._schedule()
        return [] if plan is None else self._finish(self._launch(plan))

    def run_overlapped(self) -> list[StepOutput]:
        """Launch the next step if possible, then finish the step in flight."""
        step, self._in_flight = self._in_flight, None
        if step is None or step.plan.is_finished:
            plan = self._schedule()
            if plan is None:
                return []
            step = self._launch(plan)
        following = self._launch_next(step)
        outputs = self._finish(step)
        self._in_flight = self._adopt(following)
        return outputs

    def _schedule(self) -> SchedulerOutput | None:
        """Plan a step of all sequences; None if there are none."""
        if self.recorder is not None:
            self.recorder.before_schedule(self._scheduler)
        plan = self._scheduler.schedule(time.monotonic())
        if not plan.scheduled:
            if self._scheduler.has_work and not self._scheduler.waits_for_embeddings:
                raise IntegrityError("sequences are waiting and none can be scheduled")
            return None
        if self.recorder is not None:
            self.recorder.scheduled(plan, self._scheduler)
        return plan

    def _launch(self, plan: SchedulerOutput) -> InFlightStep:
        """Launch a step; if that raises, `_finish` will see the error as the step's result."""
        self.clock.includes(plan.num_tokens)
        start = time.monotonic()
        try:
            return InFlightStep(plan, self.runner.launch(plan), start)
        except Exception as error:
            return InFlightStep(plan, _FailedLaunch(error), start)

    def _launch_next(self, step: InFlightStep) -> InFlightStep | None:
        """Launch the step after `step` before its tokens are known; None if it depends on them."""
        if isinstance(step.pending, _FailedLaunch):
            return None
        plan = self._scheduler.schedule_next(step.plan)
        if plan is None:
            return None
        self.clock.includes(plan.num_tokens)
        start = time.monotonic()
        try:
            return InFlightStep(plan, self.runner.launch(plan, step.pending), start)
        except Exception:
            # No sequence has changed: the next step is scheduled as if this had not been tried.
            logger.exception("overlapped step could not be launched")
            return None

    def _adopt(self, following: InFlightStep | None) -> InFlightStep | None:
        """Make an overlapped step the current one; None if all its sequences have finished."""
        if following is None or following.plan.is_finished:
            return None
        if self.recorder is not None:
            self.recorder.before_schedule(self._scheduler)
        plan = self._scheduler.adopt(following.plan, time.monotonic())
        if self.recorder is not None:
            self.recorder.scheduled(plan, self._scheduler)
        # Until now the device was busy with the step before.
        return InFlightStep(plan, following.pending, plan.start)

    def _finish(self, step: InFlightStep) -> list[StepOutput]:
        """Wait for a step, and apply its result or its failure to the sequences."""
        plan = step.plan
        self.clock.includes(plan.num_tokens)
        try:
            result = step.pending.result()
        except Exception as error:
            outputs = self._fail([scheduled.sequence for scheduled in plan.live], error)
        else:
            if plan.previous_indices is not None:
                plan, result = _without_finished(plan, result)
            outputs = self._apply(plan, result, step.start)
        if self.recorder is not None:
            self.recorder.ended(failed=self._num_consecutive_failures > 0)
        return outputs

    def _apply(self, plan: SchedulerOutput, result: StepResult, start: float) -> list[StepOutput]:
        self._num_consecutive_failures = 0
        if self.recorder is None or not self.recorder.describes:
            metrics.observe_step(plan.num_tokens, time.monotonic() - start)
        sampling = plan.sampling
        accepted = accept(sampling, result.tokens)
        if not all(accepted):
            # Before `finish`, which takes the blocks of these sequences.
            pairs = zip(sampling, accepted, strict=True)
            self._recover([scheduled.sequence for scheduled, tokens in pairs if not tokens])
        if result.prompt_logprobs:
            for sequence in plan.sequences:
                if sequence.prompt_logprobs is not None:
                    sequence.prompt_logprobs += result.prompt_logprobs.get(sequence.request_id, [])
        return self._scheduler.finish(plan, accepted, time.monotonic())

    def _fail(self, sequences: list[Sequence], error: Exception) -> list[StepOutput]:
        logger.error("step failed", exc_info=error, extra={"num_sequences": len(sequences)})
        self._num_consecutive_failures += 1
        self._recover(sequences)
        is_alone = len(sequences) == 1
        cause = (SequenceFailed if is_alone else StepFailed)(
            f"the step failed: {type(error).__name__}"
        )
        cause.__cause__ = error
        outputs = self._scheduler.fail(sequences, cause, time.monotonic())
        if self._num_consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
            self.healthy = False
        elif self._num_consecutive_failures >= NUM_SUSPICIOUS_FAILURES:
            self._test_when_idle()
        return outputs

    def _test_when_idle(self) -> None:
        """Run a step of a sequence that no client has sent; the engine is broken if it fails."""
        if self._scheduler.has_work or not self.healthy:
            return
        params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        sequence = Sequence("self-test", [0, 0], params)
        sequence.max_tokens = 1
        self._scheduler.add(sequence)
        plan = self._scheduler.schedule(time.monotonic())
        try:
            accepted = accept(plan.sampling, self._launch(plan).pending.result().tokens)
        except Exception:
            logger.exception("engine failed its self-test")
            accepted = [[]]
        if all(accepted):
            self._num_consecutive_failures = 0
        else:
            self.healthy = False
            self._recover([sequence])
        self._scheduler.finish(plan, accepted, time.monotonic())

    def _recover(self, sequences: list[Sequence]) -> None:
        # A NaN in a block would outlive its sequence: attention multiplies masked values by zero,
        # and zero times NaN is NaN. A shared block is still read, so it stays as it is.
        blocks = self._scheduler.block_manager.exclusive_blocks(sequences)
        try:
            self.runner.recover(blocks)
        except Exception:
            logger.exception("engine cannot recover")
            self.healthy = False


def _without_finished(
    plan: SchedulerOutput, result: StepResult
) -> tuple[SchedulerOutput, StepResult]:
    """Drop the sequences that finished after an overlapped step was launched, and their tokens."""
    live = plan.live
    if len(live) == len(plan.scheduled):
        return plan, result
    pairs = zip(plan.scheduled, result.tokens, strict=True)
    tokens = [token for scheduled, token in pairs if scheduled.sequence.finish is None]
    return SchedulerOutput(live, plan.start), StepResult(tokens)
