"""Runs an engine in a separate thread, with an asyncio interface.

Commands add and abort sequences; all outputs of a step come back in one callback.
"""

from __future__ import annotations

import asyncio
from collections import abc
from collections.abc import AsyncGenerator, Callable
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
from inference.engine.threaded_engine import ThreadedEngine
from inference.engine.watchdog import STEP_TIMEOUT_SECONDS
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from inference.structured_output.compiler import CompileLimits, ConstraintCompiler
from mesh.context import current_request
from mesh.protocol.constraints import OutputConstraint
from mesh.protocol.finish import FinishReason

Command = Callable[[Engine], StepOutput | None]


class AsyncEngine(ThreadedEngine[Engine, Command]):
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
        super().__init__(
            self._load_and_record, name="engine", on_cpu=on_cpu, step_timeout=step_timeout
        )
        self._load_engine = load
        self._on_step = on_step
        self._traced_steps = traced_steps
        self._load: Load | None = None
        self._compile_limits = compile_limits or CompileLimits()
        self._compiler: ConstraintCompiler | None = None
        self._num_compiling = 0
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

    async def stop(self, *, drain_timeout: float = 0.0) -> None:
        await super().stop(drain_timeout=drain_timeout)
        if self._compiler is not None:
            await self._compiler.close()

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
        if not self._accepts_work:
            raise EngineUnavailable("the engine takes no new sequences")
        sequence = Sequence(
            request_id,
            prompt_token_ids,
            params,
            num_resumed_tokens=num_resumed_tokens,
            eos_token_ids=engine.model_info.eos_token_ids,
            deadline=deadline,
            adapter=engine.adapters.get(adapter),
            group=_group(),
        )
        engine.admission.admit(
            sequence,
            num_live=self._streams.num_live + self._num_compiling,
            is_further=self._streams.has_group(sequence.group),
        )
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

    async def load_adapter(self, name: str, path: str, copied_sha256: str = "") -> AdapterInfo:
        return await self._started().adapters.load(name, path, copied_sha256)

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
        if engine.embeddings is None or not self._accepts_work:
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

    async def _wait_empty(self, seconds: float) -> None:
        live = self._streams, self._embeddings
        await asyncio.gather(*(each.empty.wait(seconds) for each in live))

    def _num_live(self) -> int:
        return self._streams.num_live + self._embeddings.num_live

    def _end_all(self, cause: EngineUnavailable) -> None:
        self._embeddings.end_all(cause)
        for request_id in self._streams.end_all(cause):
            # Executed if the step returns after all. The stream's consumer records the end.
            self._command(partial(Engine.abort, request_id=request_id))

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

    def _load_and_record(self) -> Engine:
        engine = self._load_engine()
        self._load = engine.load()
        if self._on_step is not None and self._traced_steps:
            engine.record_steps(StepRecorder(self._traced_steps, self._report_step))
        return engine

    def _run_step(self, model: Engine, commands: abc.Sequence[Command]) -> None:
        outputs = _execute(model, commands)
        if model.has_work:
            outputs += model.step()
        self._load = model.load()
        self._deliver(outputs)
        if model.embeddings is not None and model.embeddings.has_work:
            if ended := model.run_embeddings():
                self._call(partial(self._embeddings.deliver, ended))
            self._load = model.load()
        if self._block_feed is not None and (changes := model.take_block_events()):
            self._call(partial(self._block_feed.publish, changes))
        model.check_when_idle()

    def _close(
        self, model: Engine, commands: abc.Sequence[Command], cause: EngineUnavailable
    ) -> None:
        outputs = _execute(model, commands) + model.abort_all(cause)
        embeddings = [] if model.embeddings is None else model.embeddings.abort_all(cause)
        self._load = model.load()
        self._deliver(outputs)
        self._call(partial(self._embeddings.deliver, embeddings))

    def _deliver(self, outputs: list[StepOutput]) -> None:
        if outputs:
            self._call(partial(self._streams.deliver, outputs))

    def _report_step(self, step: StepRecord) -> None:
        if self._on_step is not None:
            self._call(partial(self._on_step, step))


def _execute(engine: Engine, commands: abc.Sequence[Command]) -> list[StepOutput]:
    return [output for command in commands if (output := command(engine)) is not None]


def _group() -> str:
    """The client's request: its sequences come in calls of Weir's own, or in one of a router's."""
    request = current_request()
    return "" if request is None else f"{request.key_name}/{request.request_id}"


def _embed(call: EmbeddingCall, engine: Engine) -> None:
    assert engine.embeddings is not None, "the event loop refuses calls that cannot be embedded"
    engine.embeddings.add(call)
