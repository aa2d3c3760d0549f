"""Runs an engine in a separate thread, with an asyncio interface.

event loop                              engine thread
generate ──add──▶ commands ──────────▶ add, abort
                                        step
streams ◀──one call_soon_threadsafe──── outputs of the step
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import abc, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from inference.api import metrics
from inference.api.step_recorder import StepRecorder
from inference.embedding.calls import EmbeddingCall, EmbeddingCalls, check_inputs
from inference.engine.block_feed import BlockFeed
from inference.engine.engine import Engine
from inference.engine.errors import EngineError, EngineUnavailable, UnsupportedCall
from inference.engine.interface import (
    AdapterInfo,
    Finish,
    Load,
    ModelInfo,
    SequenceOutput,
    StepRecord,
    TokenPair,
)
from inference.engine.streams import Streams
from inference.engine.threads import lower_priority, stack_of
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS, StepState, Watchdog
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from inference.structured_output.compiler import CompileLimits, ConstraintCompiler
from mesh.context import current_request
from mesh.process import cpu_scheduling
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.finish import FinishReason

logger = logging.getLogger(__name__)

Command = Callable[[Engine], StepOutput | None]

STOP_SECONDS = 10.0
"""Most seconds that `stop` waits for the running step."""


class AsyncEngine:
    """Implements `EngineClient`. The thread sleeps while it is idle."""

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        on_step: Callable[[StepRecord], None] | None = None,
        traced_steps: int = 0,
        max_messages_per_second: float = 0.0,
        on_cpu: bool = False,
        step_timeout: float = STEP_TIMEOUT_SECONDS,
        compile_limits: CompileLimits | None = None,
    ) -> None:
        """`load` makes the engine, in the engine's thread; it may raise EngineError.

        `on_step` is called on the event loop for one step in `traced_steps`; 0: never. `Streams`
        describes `max_messages_per_second`. `on_cpu`: the forward pass runs on CPU threads.
        `step_timeout` is the `min_seconds` of the watchdog.
        `compile_limits` bound the compilation of a constraint.
        """
        self._load_engine = load
        self._on_cpu = on_cpu
        self._on_step = on_step
        self._traced_steps = traced_steps
        self._engine: Engine | None = None
        self._load: Load | None = None
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._closed: EngineUnavailable | None = None
        """Set when the thread has taken its last commands: the reason to refuse others."""
        self._stopping = False
        self._draining = False
        self._compile_limits = compile_limits or CompileLimits()
        self._compiler: ConstraintCompiler | None = None
        self._num_compiling = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._health_changed = asyncio.Event()
        self._step_timeout = step_timeout
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None
        self._embeddings = EmbeddingCalls(self._submit_embedding)
        self._block_feed: BlockFeed | None = None
        self._streams = Streams(
            submit=self._submit,
            abort=self._abort,
            max_messages_per_second=max_messages_per_second,
        )

    @property
    def model_info(self) -> ModelInfo:
        return self._started().model_info

    @property
    def healthy(self) -> bool:
        thread = self._thread
        engine = self._engine
        alive = engine is not None and engine.healthy and thread is not None and thread.is_alive()
        return alive and self._step_returns

    @property
    def _step_returns(self) -> bool:
        return self._watchdog is None or self._watchdog.state is StepState.RETURNING

    async def health_changes(self) -> AsyncIterator[bool]:
        while not self._ended.is_set():
            self._health_changed.clear()
            yield self.healthy
            await self._health_changed.wait()

    async def start(self) -> None:
        assert self._thread is None, "started twice"
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(self._loop, loaded), name="engine", daemon=True
        )
        self._thread.start()
        await loaded
        clock = self._started().steps.clock
        self._watchdog = Watchdog(clock, self._step_timeout, self._step_state_changed)
        self._watching = asyncio.create_task(self._watchdog.run(), name="watchdog")

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        self._draining = True
        if self._engine is not None and drain_timeout > 0:
            live = self._streams, self._embeddings
            await asyncio.gather(*(each.empty.wait(drain_timeout) for each in live))
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._compiler is not None:
            await self._compiler.close()
        if self._thread is not None:
            # A stuck step does not end; the thread is a daemon, so that the process does.
            seconds = STOP_SECONDS if self._step_returns else 0.0
            await asyncio.to_thread(self._thread.join, seconds)
            if self._thread.is_alive():
                logger.error("engine thread does not stop", extra={"stack": stack_of(self._thread)})
            # Let the loop run the callbacks that the thread scheduled last.
            await asyncio.sleep(0)

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
        engine = self._started()
        if self._draining or not self.healthy:
            raise EngineUnavailable("the engine takes no new sequences")
        sequence = Sequence(
            request_id,
            prompt_token_ids,
            params,
            num_resumed_tokens=num_resumed_tokens,
            eos_token_ids=engine.model_info.eos_token_ids,
            deadline=deadline,
            adapter=engine.adapters.get(adapter),
        )
        engine.admission.admit(sequence, num_live=self._streams.num_live + self._num_compiling)
        if params.constraint is not None:
            await self._compile_constraint(engine, sequence, params.constraint)
        async with aclosing(self._streams.generate(sequence, on_abandoned)) as outputs:
            async for output in outputs:
                yield output

    @property
    def adapters(self) -> list[AdapterInfo]:
        return self._started().adapters.infos

    @property
    def max_adapters(self) -> int:
        return self._started().adapters.max_adapters

    @property
    def allows_loading_adapters(self) -> bool:
        return self._started().adapters.allows_loading

    async def load_adapter(self, name: str, path: str) -> AdapterInfo:
        return await self._started().adapters.load(name, path)

    def unload_adapter(self, name: str) -> None:
        self._started().adapters.unload(name)

    def end(self, request_id: str, reason: FinishReason) -> None:
        if self._streams.end(request_id, reason) is not None:
            self._command(partial(Engine.abort, request_id=request_id))

    def block_feed(self) -> BlockFeed:
        if self._block_feed is None:
            self._block_feed = BlockFeed(has_unknown_blocks=self.load().num_cached_tokens > 0)
            self._command(Engine.record_blocks)
        return self._block_feed

    async def embed(self, inputs: abc.Sequence[abc.Sequence[int]]) -> list[list[float]]:
        engine = self._started()
        if engine.embeddings is None or self._draining or not self.healthy:
            raise EngineUnavailable("the engine takes no inputs to embed")
        capacity = engine.admission.kv_capacity_tokens
        check_inputs(inputs, engine.model_info, capacity)
        return await self._embeddings.embed(inputs)

    async def score(self, pairs: abc.Sequence[TokenPair]) -> list[float]:
        raise UnsupportedCall(f"{self.model_info.name} is no cross-encoder")

    def load(self) -> Load:
        load = self._load
        if load is None:
            raise EngineUnavailable("the engine is not started")
        # The engine's last numbers do not include sequences that are in the commands, or that the
        # current step has started.
        num_waiting = max(0, self._streams.num_live - load.num_running)
        return replace(load, num_waiting=num_waiting + self._embeddings.num_live)

    def _step_state_changed(self, state: StepState) -> None:
        """Handle a new state of the running step; called by the watchdog."""
        assert self._watchdog is not None
        assert self._thread is not None
        fields = {
            "seconds": self._watchdog.age_seconds,
            "num_sequences": self._streams.num_live,
            "stack": stack_of(self._thread),
        }
        if state is StepState.RETURNING:
            logger.warning("stuck step has returned")
        elif state is StepState.STUCK:
            logger.error("step does not return, its sequences are aborted", extra=fields)
            metrics.STUCK_STEPS.inc()
            cause = EngineUnavailable("a step of the engine does not return")
            self._embeddings.end_all(cause)
            for request_id in self._streams.end_all(cause):
                # Executed if the step returns after all. The stream's consumer records the end.
                self._command(partial(Engine.abort, request_id=request_id))
        else:
            logger.error("step is lost", extra=fields)
            self._ended.set()
        self._health_changed.set()

    async def _compile_constraint(
        self, engine: Engine, sequence: Sequence, constraint: OutputConstraint
    ) -> None:
        """Compile without blocking the event loop or the engine."""
        if self._compiler is None:
            self._compiler = ConstraintCompiler(engine.vocabulary, self._compile_limits)
        request = current_request()
        self._num_compiling += 1
        try:
            compiled = await self._compiler.compile(constraint, request.key_name if request else "")
        finally:
            self._num_compiling -= 1
        # Not from the cache: another compilation may have evicted it meanwhile.
        sequence.matcher = engine.vocabulary.new_matcher(constraint, compiled)

    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineUnavailable("the engine is not started")
        return self._engine

    def _submit(self, sequence: Sequence) -> None:
        if not self._command(lambda engine: self._add(engine, sequence)):
            # The thread has ended since `healthy` was checked.
            assert self._closed is not None
            finish = sequence.refuse(self._closed)
            self._streams.deliver([StepOutput(sequence.request_id, [], [], finish)])

    def _submit_embedding(self, call: EmbeddingCall) -> EngineError | None:
        return None if self._command(partial(_embed, call)) else self._closed

    def _abort(self, sequence: Sequence, num_taken: int) -> None:
        cancelled = metrics.cancellation(num_taken)
        self._command(lambda engine: self._free(engine, sequence, cancelled))

    def _command(self, command: Command) -> bool:
        """Pass a command to the thread; False if the thread has closed."""
        with self._wake:
            if self._closed is not None:
                return False
            self._commands.append(command)
            self._wake.notify()
            return True

    # The methods below run in the engine's thread.

    def _add(self, engine: Engine, sequence: Sequence) -> StepOutput | None:
        try:
            engine.add(sequence)
        except EngineError as error:
            # The event loop's count of sequences admitted it; the engine's own count did not.
            finish = sequence.refuse(error)
            return StepOutput(sequence.request_id, [], [], finish)
        return None

    def _free(self, engine: Engine, sequence: Sequence, cancelled: metrics.Cancellation) -> None:
        # The consumer has left, so only metrics record the end.
        if sequence.finish is not None:
            metrics.observe_unread(sequence.finish, cancelled)
            return
        output = engine.abort(sequence.request_id)
        if output is not None and output.finish is not None:
            metrics.observe_cancelled(output.finish, cancelled)

    def _set_up_thread(self) -> None:
        # Threads that serve requests have priority over threads that compute. The native decoder's
        # threads inherit both settings.
        cpu_scheduling.reset_slice()
        if self._on_cpu:
            lower_priority()

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None]) -> None:
        self._set_up_thread()
        try:
            engine = self._load_engine()
            self._load = engine.load()
            if self._on_step is not None and self._traced_steps:
                report = partial(self._report_step, loop)
                engine.record_steps(StepRecorder(self._traced_steps, report))
            self._engine = engine
        except BaseException as error:
            loop.call_soon_threadsafe(_fail, loaded, error)
            return
        loop.call_soon_threadsafe(_succeed, loaded)
        try:
            while self._step(engine, loop):
                pass
        except Exception:
            logger.exception("the engine broke")
            engine.steps.healthy = False
        self._close(engine, loop)

    def _close(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        """Run the commands that are left, refuse further ones, and end every sequence."""
        cause = EngineUnavailable(
            "the engine has stopped" if engine.healthy else "the engine broke"
        )
        with self._wake:
            commands, self._commands = list(self._commands), deque()
            self._closed = cause
        outputs = [output for command in commands if (output := command(engine)) is not None]
        outputs += engine.abort_all(cause)
        embeddings = [] if engine.embeddings is None else engine.embeddings.abort_all(cause)
        self._load = engine.load()
        self._deliver(loop, outputs)
        self._call(loop, partial(self._embeddings.deliver, embeddings))
        self._call(loop, self._ended.set)
        self._call(loop, self._health_changed.set)

    def _step(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> bool:
        """Run the waiting commands, then one step; False if the thread should end."""
        with self._wake:
            while not (self._commands or engine.has_work or self._stopping):
                self._wake.wait()
            commands, self._commands = list(self._commands), deque()
        if self._stopping:
            with self._wake:
                self._commands.extendleft(reversed(commands))
            return False
        outputs = [output for command in commands if (output := command(engine)) is not None]
        if engine.has_work:
            outputs += engine.step()
        self._load = engine.load()
        self._deliver(loop, outputs)
        if engine.embeddings is not None and engine.embeddings.has_work:
            if ended := engine.run_embeddings():
                self._call(loop, partial(self._embeddings.deliver, ended))
            self._load = engine.load()
        if self._block_feed is not None and (changes := engine.take_block_events()):
            self._call(loop, partial(self._block_feed.publish, changes))
        engine.check_when_idle()
        return engine.healthy

    def _deliver(self, loop: asyncio.AbstractEventLoop, outputs: list[StepOutput]) -> None:
        if outputs:
            self._call(loop, lambda: self._streams.deliver(outputs))

    def _report_step(self, loop: asyncio.AbstractEventLoop, step: StepRecord) -> None:
        if self._on_step is not None:
            self._call(loop, partial(self._on_step, step))

    @staticmethod
    def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:
            logger.warning("the event loop closed before the engine stopped")


def _embed(call: EmbeddingCall, engine: Engine) -> None:
    assert engine.embeddings is not None, "the event loop refuses calls that cannot be embedded"
    engine.embeddings.add(call)


def _succeed(loaded: asyncio.Future[None]) -> None:
    if not loaded.done():
        loaded.set_result(None)


def _fail(loaded: asyncio.Future[None], error: BaseException) -> None:
    if not loaded.done():
        loaded.set_exception(error)
