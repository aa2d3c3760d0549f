"""Runs an encoder in a separate thread, with the interface of an engine.

Calls to embed or score are the commands; those that a batch has ended come back in one callback.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import NamedTuple

from inference.embedding.calls import MAX_CALLS, EmbeddingCall, EmbeddingCalls, check_inputs
from inference.encoder.queue import EncoderQueue
from inference.engine.adapters import WithoutAdapters
from inference.engine.errors import EngineError, EngineUnavailable, UnsupportedCall
from inference.engine.interface import Finish, Load, ModelInfo, SequenceOutput, TokenPair
from inference.engine.threaded_engine import ThreadedEngine
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS, StepClock
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from mesh.protocol.model_kind import ModelKind


class LoadedEncoder(NamedTuple):
    """What the thread serves."""

    info: ModelInfo
    queue: EncoderQueue
    max_num_batched_tokens: int

    @property
    def clock(self) -> StepClock:
        return self.queue.clock

    @property
    def healthy(self) -> bool:
        return self.queue.healthy

    @property
    def has_work(self) -> bool:
        return self.queue.has_work

    def mark_broken(self) -> None:
        self.queue.healthy = False


class EncoderEngine(WithoutAdapters, ThreadedEngine[LoadedEncoder, EmbeddingCall]):
    """Implements `EngineClient`, without generation. The thread sleeps while it is idle."""

    def __init__(
        self,
        load: Callable[[], LoadedEncoder],
        *,
        on_cpu: bool,
        step_timeout: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """`load` makes the encoder, in its thread; it may raise EngineError.

        `ThreadedEngine` describes the others.
        """
        super().__init__(load, name="encoder", on_cpu=on_cpu, step_timeout=step_timeout)
        self._calls = EmbeddingCalls(self._submit)

    @property
    def model_info(self) -> ModelInfo:
        return self._started().info

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        num_resumed_tokens: int = 0,
        deadline: float | None = None,
        on_abandoned: Callable[[Finish], None] | None = None,
        adapter: str = "",
    ) -> AsyncGenerator[SequenceOutput, None]:
        raise UnsupportedCall(f"{self.model_info.name} is an encoder, which generates no text")
        yield  # makes this an async generator, as the interface requires

    def end(self, request_id: str, reason: FinishReason) -> None:
        """Does nothing: no sequence is ever live."""

    def block_feed(self) -> None:
        return None  # it has no prefix cache

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        info = self._check_kind(ModelKind.EMBEDDING, "embeds no texts")
        check_inputs(inputs, info, info.max_context)
        return await self._calls.embed(inputs)

    async def score(self, pairs: Sequence[TokenPair]) -> list[float]:
        info = self._check_kind(ModelKind.SCORE, "scores no pairs of texts")
        inputs = [pair.token_ids for pair in pairs]
        check_inputs(inputs, info, info.max_context)
        rows = await self._calls.embed(inputs, [pair.num_first_tokens for pair in pairs])
        return [row[0] for row in rows]

    def load(self) -> Load:
        encoder = self._started()
        num_running = int(encoder.queue.clock.running)
        return Load(
            num_running=num_running,
            num_waiting=max(0, self._calls.num_live - num_running),
            kv_usage=0.0,
            num_cached_tokens=0,
            max_num_seqs=MAX_CALLS,
            kv_capacity_tokens=encoder.max_num_batched_tokens,
            num_preemptions=0,
        )

    def _check_kind(self, kind: ModelKind, lacking: str) -> ModelInfo:
        info = self.model_info
        if info.kind is not kind:
            raise UnsupportedCall(f"{info.name} {lacking}")
        if not self._accepts_work:
            raise EngineUnavailable("the engine takes no inputs to embed")
        return info

    async def _wait_empty(self, seconds: float) -> None:
        await self._calls.empty.wait(seconds)

    def _num_live(self) -> int:
        return self._calls.num_live

    def _end_all(self, cause: EngineUnavailable) -> None:
        self._calls.end_all(cause)

    def _submit(self, call: EmbeddingCall) -> EngineError | None:
        return None if self._command(call) else self._closed

    # The methods below run in the encoder's thread.

    def _run_step(self, model: LoadedEncoder, commands: Sequence[EmbeddingCall]) -> None:
        for call in commands:
            model.queue.add(call)
        if ended := model.queue.run_batch():
            self._call(partial(self._calls.deliver, ended))

    def _close(
        self, model: LoadedEncoder, commands: Sequence[EmbeddingCall], cause: EngineUnavailable
    ) -> None:
        for call in commands:
            model.queue.add(call)
        self._call(partial(self._calls.deliver, model.queue.abort_all(cause)))
