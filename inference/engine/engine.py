"""The engine: sequences in, and after each step their tokens out."""

from __future__ import annotations

import time

from inference.api.step_recorder import StepRecorder
from inference.embedding.calls import EmbeddingCall
from inference.embedding.queue import EmbeddingQueue, InputEmbedder
from inference.engine.adapters import Adapters
from inference.engine.admission import Admission
from inference.engine.errors import EngineError
from inference.engine.interface import Load, ModelInfo
from inference.engine.step_loop import Runner, StepLoop
from inference.engine.watchdog import StepClock
from inference.scheduler.block_events import BlockEvent
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.step_result import StepOutput
from inference.structured_output.vocabulary import Vocabulary


class Engine:
    """Runs sequences to their end. Synchronous, for one thread; commands go between steps."""

    def __init__(
        self,
        *,
        model_info: ModelInfo,
        admission: Admission,
        scheduler: Scheduler,
        runner: Runner,
        vocabulary: Vocabulary,
        embedder: InputEmbedder | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        """Without `embedder` the engine embeds nothing, without `adapters` it has none."""
        self.adapters = adapters or Adapters()
        self.model_info = model_info
        self.admission = admission
        self.steps = StepLoop(scheduler, runner)
        self.embeddings: EmbeddingQueue | None = None
        if embedder is not None:
            self.embeddings = embeddings = EmbeddingQueue(
                embedder, scheduler.block_manager, scheduler.max_num_batched_tokens
            )
            scheduler.reclaim = self.embeddings.reclaim
            scheduler.embeds = lambda: embeddings.has_work
        self._scheduler = scheduler
        self.vocabulary = vocabulary

    @property
    def healthy(self) -> bool:
        """False once no further step can be expected to work."""
        return self.steps.healthy and (self.embeddings is None or self.embeddings.healthy)

    @property
    def clock(self) -> StepClock:
        """The times of the steps."""
        return self.steps.clock

    def mark_broken(self) -> None:
        """Make it unhealthy."""
        self.steps.healthy = False

    @property
    def has_work(self) -> bool:
        """Whether there are sequences to run, or inputs to embed."""
        return self._scheduler.has_work or (
            self.embeddings is not None and self.embeddings.has_work
        )

    def add(self, sequence: Sequence) -> None:
        """Admit a sequence to the waiting queue. If it raises `EngineError`, nothing was added.

        A constraint without a matcher is compiled here, without limits.
        """
        constraint = sequence.params.constraint
        if constraint is not None and sequence.matcher is None:
            sequence.matcher = self.vocabulary.matcher(constraint)
        num_live = self._scheduler.num_running + self._scheduler.num_waiting
        self.admission.admit(sequence, num_live=num_live)
        self._scheduler.add(sequence)

    def abort(self, request_id: str, error: EngineError | None = None) -> StepOutput | None:
        """End a sequence and free its blocks now; None if it has already ended."""
        return self._scheduler.abort(request_id, time.monotonic(), error)

    def abort_all(self, error: EngineError) -> list[StepOutput]:
        """End every sequence with `error` as the cause."""
        live = [sequence.request_id for sequence in self._scheduler.sequences]
        outputs = [self.abort(request_id, error) for request_id in live]
        return [output for output in outputs if output is not None]

    def step(self) -> list[StepOutput]:
        """Run one step; returns an output for each sequence that got a token or ended.

        A step that fails ends the sequences that it ran, not the engine, unless failures repeat
        or the runner cannot recover: then `healthy` turns False.
        """
        began = time.monotonic()
        self.steps.clock.begin()
        try:
            expired = self._scheduler.drop_expired(began)
            if self.steps.runner.supports_async_scheduling:
                return expired + self.steps.run_overlapped()
            return expired + self.steps.run_synchronous()
        finally:
            self.steps.clock.end()
            if self.embeddings is not None:
                self.embeddings.pace.generated(time.monotonic() - began)

    def run_embeddings(self) -> list[EmbeddingCall]:
        """Compute a piece of the inputs to embed if one is due; returns the calls that ended.

        Call after the outputs of `step` are delivered: a piece takes some milliseconds.
        """
        queue = self.embeddings
        if queue is None or not queue.has_work:
            return []
        if not queue.pace.is_due(generating=self._scheduler.num_running > 0):
            return []
        self.steps.clock.begin()
        self.steps.clock.includes(queue.pace.num_tokens)
        try:
            return queue.run_piece()
        finally:
            self.steps.clock.end()

    def record_blocks(self) -> None:
        """Record the changes of the prefix cache from now on."""
        self._scheduler.block_manager.record_events()

    def take_block_events(self) -> list[BlockEvent]:
        """The changes of the prefix cache since the last call; none unless they are recorded."""
        return self._scheduler.block_manager.take_events()

    def record_steps(self, recorder: StepRecorder) -> None:
        """Report steps to `recorder` from now on."""
        self.steps.recorder = recorder

    def check_when_idle(self) -> None:
        """Raise `IntegrityError` if nothing runs and the accounting of the blocks is wrong.

        Takes milliseconds with a large cache: call it after the step's outputs are delivered.
        """
        if not self.has_work:
            self._scheduler.check_integrity()

    def load(self) -> Load:
        blocks = self._scheduler.block_manager
        return Load(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_waiting_tokens=self._scheduler.num_waiting_tokens,
            kv_usage=blocks.num_used_blocks / blocks.num_blocks,
            num_cached_tokens=blocks.num_cached_tokens,
            max_num_seqs=self._scheduler.max_num_seqs,
            kv_capacity_tokens=blocks.num_blocks * blocks.block_size,
            num_preemptions=self._scheduler.num_preemptions,
            block_size=blocks.block_size,
            running_adapters=self._adapters_of(SequenceStatus.RUNNING),
            waiting_adapters=self._adapters_of(SequenceStatus.WAITING),
        )

    def _adapters_of(self, status: SequenceStatus) -> tuple[str, ...]:
        """Names of the adapters of the sequences with this status."""
        if not self.adapters.max_adapters:
            return ()
        used = {
            sequence.adapter.info.name
            for sequence in self._scheduler.sequences
            if sequence.status is status and sequence.adapter is not None
        }
        return tuple(sorted(used))
