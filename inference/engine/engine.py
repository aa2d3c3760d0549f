"""The engine's loop, one step at a time: schedule, launch, finish.

Where the device computes by itself, a step is launched before the tokens of the one before it are
known, as long as nothing in it depends on them: so the device does not wait for the host.
"""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple, Protocol

from inference.api import metrics
from inference.api.step_watch import StepWatch
from inference.embedding.queue import Embedder
from inference.engine.admission import Admission
from inference.engine.errors import EngineError, StepFailed
from inference.engine.interface import Load, ModelInfo
from inference.scheduler.batch import Batch, StepOutput, StepResult, accept
from inference.scheduler.block_manager import IntegrityError
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.sequence import Sequence
from inference.structured_output.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_MAX_CONSECUTIVE_FAILURES = 3


class Launched(Protocol):
    """A step that has been begun."""

    def result(self) -> StepResult:
        """What came of it; waits for that. May raise anything."""
        ...


class Runner(Protocol):
    """Computes a batch. The only part of the engine that touches tensors."""

    runs_ahead: bool
    """Whether a step can be launched behind one that is still being computed."""

    def launch(self, batch: Batch, behind: Any = None) -> Launched:
        """Compute the scheduled tokens and drafts, and sample behind those that are the last.

        `behind` is what was launched before a batch with `rows_before`, which goes on from there.
        Reads the sequences, changes none. May raise anything.
        """
        ...

    def recover(self, blocks: list[int]) -> None:
        """Clear the blocks of broken sequences; raises if no further step can work."""
        ...


class Flight(NamedTuple):
    """A batch that is being computed."""

    batch: Batch
    launched: Launched
    start: float


class Engine:
    """Runs sequences to their end. Synchronous, and for one thread; commands go between steps."""

    def __init__(
        self,
        *,
        model_info: ModelInfo,
        admission: Admission,
        scheduler: Scheduler,
        runner: Runner,
        vocabulary: Vocabulary,
        embedder: Embedder | None = None,
    ) -> None:
        self.model_info = model_info
        self.embedder = embedder
        """Shares the model, and is not for the engine's thread; None: it cannot embed."""
        self.admission = admission
        self.healthy = True
        self.step_watch: StepWatch | None = None
        self._scheduler = scheduler
        self._runner = runner
        self._vocabulary = vocabulary
        self._num_consecutive_failures = 0
        self._flight: Flight | None = None
        """What was launched ahead; those of it that live are scheduled for it."""

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def prepare(self, sequence: Sequence) -> None:
        """Compile the sequence's constraint. Raises `InvalidSamplingParams`; may take a second.

        For any thread, before `add`, which does it otherwise.
        """
        constraint = sequence.params.constraint
        if constraint is not None and sequence.matcher is None:
            sequence.matcher = self._vocabulary.matcher(constraint)

    def add(self, sequence: Sequence) -> None:
        """Admit a sequence to the waiting line. Raises `EngineError` and keeps nothing of it."""
        self.prepare(sequence)
        num_live = self._scheduler.num_running + self._scheduler.num_waiting
        self.admission.admit(sequence, num_live=num_live)
        self._scheduler.add(sequence)

    def abort(self, request_id: str, error: EngineError | None = None) -> StepOutput | None:
        """End a sequence and free its blocks now; None if it has already ended."""
        return self._scheduler.abort(request_id, time.monotonic(), error)

    def abort_all(self, error: EngineError) -> list[StepOutput]:
        """End every sequence, for the cause given."""
        live = [sequence.request_id for sequence in self._scheduler.sequences]
        outputs = [self.abort(request_id, error) for request_id in live]
        return [output for output in outputs if output is not None]

    def step(self) -> list[StepOutput]:
        """Run one step; returns what it means for each sequence that got a token or ended.

        A step that breaks ends the sequences it carried, not the engine; `healthy` turns False
        where no further step can be expected to work.
        """
        outputs = self._scheduler.drop_expired(time.monotonic())
        flight, self._flight = self._flight, None
        if flight is None or not flight.batch.live:
            flight = self._launch_next(outputs)
        if flight is not None:
            behind = self._launch_behind(flight)
            outputs += self._land(flight)
            self._flight = self._take_over(behind)
        return outputs

    def check_when_idle(self) -> None:
        """Raise `IntegrityError` where nothing runs and the books of the blocks do not match.

        Takes milliseconds with a large cache: call it once everybody has been told.
        """
        if not self._scheduler.has_work:
            self._scheduler.check_integrity()

    def load(self) -> Load:
        blocks = self._scheduler.block_manager
        return Load(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_usage=blocks.num_used_blocks / blocks.num_blocks,
            num_cached_tokens=blocks.num_cached_tokens,
            max_num_seqs=self._scheduler.max_num_seqs,
            kv_capacity_tokens=blocks.num_blocks * blocks.block_size,
            num_preemptions=self._scheduler.num_preemptions,
            block_size=blocks.block_size,
        )

    def _launch_next(self, outputs: list[StepOutput]) -> Flight | None:
        """Schedule and launch a step; adds to the outputs what ends where that breaks."""
        if self.step_watch is not None:
            self.step_watch.begins(self._scheduler)
        batch = self._scheduler.schedule(time.monotonic())
        if not batch.sequences:
            if self._scheduler.has_work:
                raise IntegrityError("sequences are waiting and none can be scheduled")
            return None
        if self.step_watch is not None:
            self.step_watch.runs(batch, self._scheduler)
        start = time.monotonic()
        try:
            return Flight(batch, self._runner.launch(batch), start)
        except Exception as error:
            outputs += self._fail(batch, error)
            self._tell_ended()
            return None

    def _launch_behind(self, flight: Flight) -> Flight | None:
        """Launch the step behind a flight, where its tokens do not matter for that."""
        if not self._runner.runs_ahead:
            return None
        batch = self._scheduler.schedule_behind(flight.batch)
        if batch is None:
            return None
        start = time.monotonic()
        try:
            return Flight(batch, self._runner.launch(batch, flight.launched), start)
        except Exception:
            # No sequence has been changed: the next step is scheduled as if this had not been.
            logger.exception("no step could be launched ahead")
            return None

    def _take_over(self, flight: Flight | None) -> Flight | None:
        """Schedule what was launched behind the step that has just ended; None if none is left."""
        if flight is None or not flight.batch.live:
            return None
        if self.step_watch is not None:
            self.step_watch.begins(self._scheduler)
        batch = self._scheduler.foresight.take_over(flight.batch, time.monotonic())
        if self.step_watch is not None:
            self.step_watch.runs(Batch(batch.live, batch.start), self._scheduler)
        # Until now the device was busy with the step before.
        return Flight(batch, flight.launched, batch.start)

    def _land(self, flight: Flight) -> list[StepOutput]:
        """Wait for a step, and finish it."""
        batch = Batch(flight.batch.live, flight.batch.start)
        try:
            result = flight.launched.result()
        except Exception as error:
            outputs = self._fail(batch, error)
        else:
            tokens = result.tokens
            if flight.batch.rows_before is not None:  # some may have ended since it was launched
                rows = zip(flight.batch.sequences, tokens, strict=True)
                tokens = [token for sequence, token in rows if sequence.finish is None]
            outputs = self._finish(batch, StepResult(tokens, result.prompt_logprobs), flight.start)
        self._tell_ended()
        return outputs

    def _finish(self, batch: Batch, result: StepResult, start: float) -> list[StepOutput]:
        self._num_consecutive_failures = 0
        num_tokens = sum(sequence.num_scheduled_tokens for sequence in batch.sequences)
        metrics.observe_step(num_tokens, time.monotonic() - start)
        sampling = batch.sampling
        accepted = accept(sampling, result.tokens)
        broken = [s for s, stands in zip(sampling, accepted, strict=True) if not stands]
        if broken:  # before `finish`, which takes their blocks away
            self._recover(broken)
        for sequence in batch.sequences:
            if sequence.prompt_logprobs is not None:
                sequence.prompt_logprobs += result.prompt_logprobs.get(sequence.request_id, [])
        return self._scheduler.finish(batch, accepted, time.monotonic())

    def _tell_ended(self) -> None:
        if self.step_watch is not None:
            self.step_watch.ended(failed=self._num_consecutive_failures > 0)

    def _fail(self, batch: Batch, error: Exception) -> list[StepOutput]:
        logger.error("step failed", exc_info=error, extra={"num_sequences": len(batch.sequences)})
        self._num_consecutive_failures += 1
        if self._num_consecutive_failures >= _MAX_CONSECUTIVE_FAILURES:
            self.healthy = False
        self._recover(batch.sequences)
        cause = StepFailed(f"the step failed: {type(error).__name__}")
        cause.__cause__ = error
        return self._scheduler.fail(batch.sequences, cause, time.monotonic())

    def _recover(self, sequences: list[Sequence]) -> None:
        # A NaN in a block would outlive its sequence: attention multiplies what it masks by
        # zero, and zero times NaN is NaN. A shared block is still read, so it stays as it is.
        blocks = self._scheduler.block_manager.exclusive_blocks(sequences)
        try:
            self._runner.recover(blocks)
        except Exception:
            logger.exception("engine cannot recover")
            self.healthy = False
