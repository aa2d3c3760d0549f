"""Runs an encoder in a separate thread, with the interface of an engine.

event loop                              encoder's thread
embed, score ──call──▶ commands ──────▶ add
                                        batch
callers ◀──one call_soon_threadsafe──── calls that have ended
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import NamedTuple

from inference.api import metrics
from inference.embedding.calls import MAX_CALLS, EmbeddingCall, EmbeddingCalls, check_inputs
from inference.encoder.queue import EncoderQueue
from inference.engine.adapters import WithoutAdapters
from inference.engine.errors import EngineError, EngineUnavailable, UnsupportedCall
from inference.engine.interface import Finish, Load, ModelInfo, SequenceOutput, TokenPair
from inference.engine.threads import lower_priority, stack_of
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS, StepState, Watchdog
from inference.sampling.sampling_params import SamplingParams
from mesh.process import cpu_scheduling
from mesh.protocol.finish import FinishReason
from mesh.protocol.model_kind import ModelKind

logger = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""Most seconds that `stop` waits for the running batch."""


class LoadedEncoder(NamedTuple):
    """What the thread serves."""

    info: ModelInfo
    queue: EncoderQueue
    max_num_batched_tokens: int


class EncoderEngine(WithoutAdapters):
    """Implements `EngineClient`, without generation. The thread sleeps while it is idle."""

    def __init__(
        self,
        load: Callable[[], LoadedEncoder],
        *,
        on_cpu: bool,
        step_timeout: float = STEP_TIMEOUT_SECONDS,
    ) -> None:
        """`load` makes the encoder, in its thread; it may raise EngineError.

        `on_cpu`: the forward pass runs on CPU threads. `step_timeout` is the `min_seconds` of the
        watchdog.
        """
        self._load_encoder = load
        self._on_cpu = on_cpu
        self._step_timeout = step_timeout
        self._encoder: LoadedEncoder | None = None
        self._calls = EmbeddingCalls(self._submit)
        self._new: deque[EmbeddingCall] = deque()
        self._wake = threading.Condition()
        self._closed: EngineUnavailable | None = None
        """Set when the thread has taken its last calls: the reason to refuse others."""
        self._stopping = False
        self._draining = False
        self._thread: threading.Thread | None = None
        self._ended = asyncio.Event()
        self._health_changed = asyncio.Event()
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def model_info(self) -> ModelInfo:
        return self._started().info

    @property
    def healthy(self) -> bool:
        encoder, thread = self._encoder, self._thread
        alive = encoder is not None and thread is not None and thread.is_alive()
        return alive and self._started().queue.healthy and self._batch_returns

    @property
    def _batch_returns(self) -> bool:
        return self._watchdog is None or self._watchdog.state is StepState.RETURNING

    async def health_changes(self) -> AsyncIterator[bool]:
        while not self._ended.is_set():
            self._health_changed.clear()
            yield self.healthy
            await self._health_changed.wait()

    async def start(self) -> None:
        assert self._thread is None, "started twice"
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loop, loaded), name="encoder", daemon=True
        )
        self._thread.start()
        await loaded
        clock = self._started().queue.clock
        self._watchdog = Watchdog(clock, self._step_timeout, self._batch_state_changed)
        self._watching = asyncio.create_task(self._watchdog.run(), name="watchdog")

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        self._draining = True
        if self._encoder is not None and drain_timeout > 0:
            await self._calls.empty.wait(drain_timeout)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._thread is not None:
            # A stuck batch does not end; the thread is a daemon, so that the process does.
            seconds = STOP_SECONDS if self._batch_returns else 0.0
            await asyncio.to_thread(self._thread.join, seconds)
            # Let the loop run the callbacks that the thread scheduled last.
            await asyncio.sleep(0)

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
        if self._draining or not self.healthy:
            raise EngineUnavailable("the engine takes no inputs to embed")
        return info

    def _batch_state_changed(self, state: StepState) -> None:
        """Handle a new state of the running batch; called by the watchdog."""
        assert self._watchdog is not None
        assert self._thread is not None
        if state is StepState.RETURNING:
            logger.warning("stuck step has returned")
        elif state is StepState.STUCK:
            fields = {"seconds": self._watchdog.age_seconds, "stack": stack_of(self._thread)}
            logger.error("step does not return, its inputs are aborted", extra=fields)
            metrics.STUCK_STEPS.inc()
            self._calls.end_all(EngineUnavailable("a step of the engine does not return"))
        else:
            logger.error("step is lost", extra={"seconds": self._watchdog.age_seconds})
            self._ended.set()
        self._health_changed.set()

    def _started(self) -> LoadedEncoder:
        if self._encoder is None:
            raise EngineUnavailable("the engine is not started")
        return self._encoder

    def _submit(self, call: EmbeddingCall) -> EngineError | None:
        with self._wake:
            if self._closed is None:
                self._new.append(call)
                self._wake.notify()
            return self._closed

    # The methods below run in the encoder's thread.

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None]) -> None:
        # Threads that serve requests have priority over threads that compute. The native
        # encoder's threads inherit both settings.
        cpu_scheduling.reset_slice()
        if self._on_cpu:
            lower_priority()
        try:
            self._encoder = encoder = self._load_encoder()
        except BaseException as error:
            loop.call_soon_threadsafe(_end, loaded, error)
            return
        loop.call_soon_threadsafe(_end, loaded, None)
        try:
            while self._step(encoder.queue, loop):
                pass
        except Exception:
            logger.exception("the engine broke")
            encoder.queue.healthy = False
        self._close(encoder.queue, loop)

    def _step(self, queue: EncoderQueue, loop: asyncio.AbstractEventLoop) -> bool:
        """Add the new calls, then compute a batch; False if the thread should end."""
        with self._wake:
            while not (self._new or queue.has_work or self._stopping):
                self._wake.wait()
            if self._stopping:
                return False
            new, self._new = self._new, deque()
        for call in new:
            queue.add(call)
        if ended := queue.run_batch():
            self._call(loop, partial(self._calls.deliver, ended))
        return queue.healthy

    def _close(self, queue: EncoderQueue, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse further calls, and end every live one."""
        reason = "the engine has stopped" if queue.healthy else "the engine broke"
        with self._wake:
            self._closed = EngineUnavailable(reason)
            for call in self._new:
                queue.add(call)
        self._call(loop, partial(self._calls.deliver, queue.abort_all(self._closed)))
        self._call(loop, self._ended.set)
        self._call(loop, self._health_changed.set)

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.warning("the event loop closed before the engine stopped")


def _end(loaded: asyncio.Future[None], error: BaseException | None) -> None:
    if loaded.done():
        return
    if error is None:
        loaded.set_result(None)
    else:
        loaded.set_exception(error)
