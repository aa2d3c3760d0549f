"""An engine without tensors: the real scheduler with a runner that computes tokens by a formula."""

from __future__ import annotations

import threading

from inference.embedding.queue import InputEmbedder
from inference.engine.admission import Admission
from inference.engine.engine import Engine
from inference.engine.interface import ModelInfo
from inference.engine.step_loop import PendingStep
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.block_manager import BlockManager
from inference.scheduler.scheduler import Scheduler
from inference.scheduler.scheduler_output import SchedulerOutput
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import SampledToken, StepResult
from inference.structured_output.vocabulary import Vocabulary

VOCAB_SIZE = 100
BLOCK_SIZE = 4


class LaunchedStub:
    """A launched step whose tokens are already known."""

    def __init__(self, runner: StubRunner, token_ids: list[int]) -> None:
        self.token_ids = token_ids
        self._runner = runner

    def result(self) -> StepResult:
        if self._runner.late_error is not None:
            raise self._runner.late_error
        return StepResult([SampledToken(token_id) for token_id in self.token_ids])


class StubRunner:
    """Counts its steps; fails, samples no token or blocks when a test sets its attributes."""

    def __init__(self, *, supports_async_scheduling: bool = False) -> None:
        self.supports_async_scheduling = supports_async_scheduling
        self.num_steps_ahead = 0
        self.num_steps = 0
        self.batches: list[list[str]] = []
        self.error: Exception | None = None
        self.late_error: Exception | None = None
        """Raised by `LaunchedStub.result`, as a GPU raises its errors."""
        self.recover_error: Exception | None = None
        self.not_finite: set[str] = set()
        self.recovered: list[int] = []
        self.gate: threading.Semaphore | None = None
        """If set, each step waits for one release."""

    def launch(self, plan: SchedulerOutput, previous: PendingStep | None = None) -> LaunchedStub:
        if self.gate is not None:
            assert self.gate.acquire(timeout=10), "the test released no step"
        self.num_steps += 1
        self.batches.append([sequence.request_id for sequence in plan.sequences])
        if self.error is not None:
            raise self.error
        sequences = [scheduled.sequence for scheduled in plan.sampling]
        if previous is None:
            assert plan.previous_indices is None
            return LaunchedStub(self, [self._token(s, list(s.token_ids)) for s in sequences])
        assert plan.previous_indices is not None
        assert isinstance(previous, LaunchedStub)
        self.num_steps_ahead += 1
        before = [previous.token_ids[index] for index in plan.previous_indices]
        return LaunchedStub(
            self,
            [
                self._token(s, [*s.token_ids, token])
                for s, token in zip(sequences, before, strict=True)
            ],
        )

    def recover(self, blocks: list[int]) -> None:
        self.recovered += blocks
        if self.recover_error is not None:
            raise self.recover_error

    def _token(self, sequence: Sequence, token_ids: list[int]) -> int:
        if sequence.request_id in self.not_finite:
            return -1
        return next_token(token_ids)


def next_token(token_ids: list[int]) -> int:
    """The token that the stub samples after these ids."""
    return (token_ids[-1] * 7 + len(token_ids)) % VOCAB_SIZE


def make_stub_engine(
    runner: StubRunner,
    *,
    num_blocks: int = 64,
    max_num_seqs: int = 8,
    max_num_waiting: int = 8,
    max_num_batched_tokens: int = 32,
    max_context: int = 10_000,
    embedder: InputEmbedder | None = None,
) -> Engine:
    """A small engine with the stub runner, without EOS ids."""
    info = ModelInfo(
        name="stub",
        architecture="Stub",
        dtype="none",
        device="none",
        vocab_size=VOCAB_SIZE,
        max_context=max_context,
        num_parameters=0,
        eos_token_ids=(),
    )
    admission = Admission(
        vocab_size=VOCAB_SIZE,
        max_context=max_context,
        kv_capacity_tokens=num_blocks * BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_waiting=max_num_waiting,
    )
    scheduler = Scheduler(
        BlockManager(num_blocks, BLOCK_SIZE),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    return Engine(
        model_info=info,
        admission=admission,
        scheduler=scheduler,
        runner=runner,
        vocabulary=Vocabulary(None, "the stub has no tokenizer"),
        embedder=embedder,
    )


def make_sequence(
    request_id: str,
    prompt: list[int],
    max_tokens: int = 4,
    *,
    deadline: float | None = None,
    seed: int | None = None,
    priority: int = 0,
) -> Sequence:
    """A sequence with few options."""
    params = SamplingParams(max_tokens=max_tokens, seed=seed, priority=priority)
    return Sequence(request_id, prompt, params, deadline=deadline)
