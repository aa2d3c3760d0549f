"""An engine without a model, for tests and relay benchmarks: generated ids at a settable speed.

Never a default. Imports no torch. The ids are a function of the prompt and the position, so a
stream that fails over to another replica continues with the same ids. Its load is real.
"""

from __future__ import annotations

import asyncio
import time
from collections import abc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from zlib import crc32

from inference.api import metrics
from inference.embedding.calls import check_inputs
from inference.engine.adapters import WithoutAdapters
from inference.engine.admission import Admission
from inference.engine.errors import (
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    UnsupportedCall,
)
from inference.engine.interface import (
    Finish,
    Load,
    ModelInfo,
    SequenceOutput,
    TokenPair,
)
from inference.engine.streams import Streams
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence, SequenceStatus
from inference.scheduler.step_result import StepOutput
from inference.structured_output.constraint import invalid_constraint
from mesh.protocol.finish import FinishReason
from mesh.protocol.logprobs import TokenLogprob

FIRST_ID = 600
NUM_IDS = 1024
"""Ids in a range where vocabularies have words, above bytes and special tokens."""

TOKENS_AT_ONCE = 8
"""Tokens generated per iteration of the event loop while all consumers are delayed: an iteration
costs as much as a token."""

KV_CAPACITY_TOKENS = 1 << 22
EMBEDDING_SIZE = 8


class FakeEngine(WithoutAdapters):
    """Implements `EngineClient`. A step gives every running sequence one token."""

    def __init__(
        self,
        name: str,
        *,
        tokens_per_second: float = 0.0,
        max_num_seqs: int = 1024,
        max_num_waiting: int = 1024,
        max_context: int = 32_768,
        vocab_size: int = 6144,
        max_messages_per_second: float = 0.0,
    ) -> None:
        """`tokens_per_second` is the speed of each stream; 0: as fast as consumers read."""
        self.model_info = _model_info(name, max_context, vocab_size)
        self._interval = 1 / tokens_per_second if tokens_per_second else 0.0
        self._max_num_seqs = max_num_seqs
        self._admission = Admission(
            vocab_size=vocab_size,
            max_context=max_context,
            kv_capacity_tokens=KV_CAPACITY_TOKENS,
            max_num_seqs=max_num_seqs,
            max_num_waiting=max_num_waiting,
        )
        self._wanted = asyncio.Event()
        self._sequences: dict[str, Sequence] = {}
        self._streams = Streams(
            submit=self._submit,
            abort=self._abort,
            on_demand=self._wanted.set,
            max_messages_per_second=max_messages_per_second,
        )
        self._stepping: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def healthy(self) -> bool:
        return self._stepping is not None and not self._stepping.done()

    async def health_changes(self) -> AsyncIterator[bool]:
        if self._stepping is not None:
            yield self.healthy
            await asyncio.wait([self._stepping])

    async def start(self) -> None:
        self._stepping = asyncio.create_task(self._run(), name="fake engine")

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        self._draining = True
        if drain_timeout > 0:
            await self._streams.empty.wait(drain_timeout)
        if self._stepping is not None:
            self._stepping.cancel()
            await asyncio.gather(self._stepping, return_exceptions=True)
        error = EngineUnavailable("the engine has stopped")
        self._streams.deliver([self._end(s, FinishReason.ABORT, error) for s in self._live()])

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: abc.Sequence[int],
        params: SamplingParams,
        *,
        num_resumed_tokens: int = 0,
        deadline: float | None = None,
        on_abandoned: Callable[[Finish], None] | None = None,
        adapter: str = "",
    ) -> AsyncGenerator[SequenceOutput, None]:
        if self._draining or not self.healthy:
            raise EngineUnavailable("the engine takes no new sequences")
        if params.constraint is not None:
            raise invalid_constraint(params.constraint, "is not supported by the fake model")
        sequence = Sequence(
            request_id,
            prompt_token_ids,
            params,
            num_resumed_tokens=num_resumed_tokens,
            deadline=deadline,
        )
        self._admission.admit(sequence, num_live=self._streams.num_live)
        async with aclosing(self._streams.generate(sequence, on_abandoned)) as outputs:
            async for output in outputs:
                yield output

    def end(self, request_id: str, reason: FinishReason) -> None:
        if self._streams.end(request_id, reason) is not None:
            self._sequences.pop(request_id, None)

    def block_feed(self) -> None:
        return None  # it has no prefix cache

    async def embed(self, inputs: abc.Sequence[abc.Sequence[int]]) -> list[list[float]]:
        check_inputs(inputs, self.model_info, KV_CAPACITY_TOKENS)
        # Unit vectors: the sum of an input's ids selects the axis.
        axes = [sum(token_ids) % EMBEDDING_SIZE for token_ids in inputs]
        return [[float(place == axis) for place in range(EMBEDDING_SIZE)] for axis in axes]

    async def score(self, pairs: abc.Sequence[TokenPair]) -> list[float]:
        raise UnsupportedCall(f"{self.model_info.name} is no cross-encoder")

    def load(self) -> Load:
        running = [s for s in self._live() if s.status is SequenceStatus.RUNNING]
        num_tokens = sum(sequence.num_tokens for sequence in running)
        return Load(
            num_running=len(running),
            num_waiting=len(self._sequences) - len(running),
            kv_usage=num_tokens / KV_CAPACITY_TOKENS,
            num_cached_tokens=0,
            max_num_seqs=self._max_num_seqs,
            kv_capacity_tokens=KV_CAPACITY_TOKENS,
            num_preemptions=0,
        )

    def _live(self) -> list[Sequence]:
        return list(self._sequences.values())

    def _submit(self, sequence: Sequence) -> None:
        self._sequences[sequence.request_id] = sequence
        if self._interval or len(self._sequences) > self._max_num_seqs:
            self._wanted.set()
        else:
            # At full speed, the first token is ready before the consumer waits for it.
            self._streams.deliver(self._step([sequence]))

    def _abort(self, sequence: Sequence, num_taken: int) -> None:
        cancelled = metrics.cancellation(num_taken)
        if sequence.finish is not None:
            metrics.observe_unread(sequence.finish, cancelled)
        elif self._sequences.pop(sequence.request_id, None) is not None:
            finish = sequence.end(FinishReason.ABORT, time.monotonic())
            metrics.observe_cancelled(finish, cancelled)

    async def _run(self) -> None:
        due = time.monotonic()
        while True:
            if not self._sequences or not self._interval:
                # Idle, or at full speed: a waiting consumer requests a step. Cleared after the
                # wait, so that a request from before this task first ran is not lost.
                await self._wanted.wait()
                self._wanted.clear()
                due = max(due, time.monotonic())
            if self._interval:
                due += self._interval
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._streams.deliver(self._step(self._live()))
            if self._streams.num_holding and not self._interval:
                # An engine at full speed does not wait for delayed consumers.
                for _ in range(TOKENS_AT_ONCE // max(1, len(self._sequences))):
                    self._streams.deliver(self._step(self._live()))
                self._wanted.set()
                await asyncio.sleep(0)

    def _step(self, sequences: list[Sequence]) -> list[StepOutput]:
        now = time.monotonic()
        expired = [s for s in sequences if s.deadline is not None and s.deadline <= now]
        outputs = [
            self._end(sequence, FinishReason.ABORT, DeadlineExceeded("the deadline passed"))
            for sequence in expired
        ]
        running = [sequence for sequence in sequences if sequence not in expired]
        for sequence in running[: self._max_num_seqs]:
            if sequence.scheduled_time is None:
                sequence.scheduled_time = now
                sequence.status = SequenceStatus.RUNNING
            token_id = fake_token(sequence)
            if sequence.prompt_logprobs is not None and sequence.first_token_time is None:
                outputs.append(_prompt_logprobs(sequence))
            reason = sequence.append(token_id, now)
            if reason is None:
                logprobs = _logprobs(sequence, token_id)
                outputs.append(StepOutput(sequence.request_id, [token_id], logprobs, None))
            else:
                outputs.append(self._end(sequence, reason, token_id=token_id))
        return outputs

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: EngineError | None = None,
        token_id: int | None = None,
    ) -> StepOutput:
        del self._sequences[sequence.request_id]
        finish = sequence.end(reason, time.monotonic(), error)
        if token_id is None:
            return StepOutput(sequence.request_id, [], [], finish)
        logprobs = _logprobs(sequence, token_id)
        return StepOutput(sequence.request_id, [token_id], logprobs, finish)


def _model_info(name: str, max_context: int, vocab_size: int) -> ModelInfo:
    return ModelInfo(
        name=name,
        architecture="Fake",
        dtype="none",
        device="none",
        vocab_size=vocab_size,
        max_context=max_context,
        num_parameters=0,
        eos_token_ids=(),
        embedding_length=EMBEDDING_SIZE,
    )


def fake_token(sequence: Sequence) -> int:
    """The next id of a sequence, a function of the prompt's ids and the position."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens].tobytes()
    return FIRST_ID + crc32(prompt, sequence.num_completion_tokens) % NUM_IDS


def _prompt_logprobs(sequence: Sequence) -> StepOutput:
    most = sequence.params.num_prompt_logprobs
    logprobs = [
        TokenLogprob(token_id, 0.0, ((token_id, 0.0),)[:most])
        for token_id in sequence.token_ids[1:]
    ]
    return StepOutput(sequence.request_id, [], [], None, logprobs)


def _logprobs(sequence: Sequence, token_id: int) -> list[TokenLogprob]:
    if sequence.params.num_logprobs is None:
        return []
    return [TokenLogprob(token_id, 0.0, ((token_id, 0.0),)[: sequence.params.num_logprobs])]
