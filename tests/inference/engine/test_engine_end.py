"""The engine thread: failure, stop, drain, and a failed start."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inference.engine.engine import Engine
from inference.engine.engine_thread import AsyncEngine
from inference.engine.errors import EngineUnavailable, ModelLoadError, SequenceFailed
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason
from tests.inference.stub_engine import (
    LONG,
    collect,
    expected_tokens,
    num_live,
    running,
    until,
    wait_broken,
)
from tests.inference.stub_runner import StubRunner, make_stub_engine


async def test_a_failed_step_ends_its_streams_and_the_engine_continues() -> None:
    """Every stream in the step gets an error finish; the next request is served."""
    runner = StubRunner()
    runner.error = RuntimeError("broken kernel")
    async with running(runner) as engine:
        _, finish, _ = await collect(engine, "a", [1], LONG)
        assert finish.reason is FinishReason.ERROR
        assert isinstance(finish.error, SequenceFailed)
        assert engine.healthy
        runner.error = None
        token_ids, _, _ = await collect(engine, "b", [1], SamplingParams(max_tokens=2))
        assert token_ids == expected_tokens([1], 2)


async def test_an_unhealthy_engine_ends_all_streams_and_refuses() -> None:
    """Every stream ends when the engine cannot continue."""
    runner = StubRunner()
    runner.error, runner.recover_error = RuntimeError("broken"), RuntimeError("device lost")
    runner.gate = threading.Semaphore(0)
    async with running(runner, max_num_seqs=1) as engine:
        streams = asyncio.gather(*(collect(engine, name, [1], LONG) for name in "abc"))
        await until(lambda: num_live(engine) == 3)
        runner.gate.release()
        results = await streams
        reasons = {finish.reason for _, finish, _ in results}
        assert reasons == {FinishReason.ERROR, FinishReason.ABORT}
        await wait_broken(engine)
        assert not engine.healthy
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("d", [1], LONG))


async def test_three_failed_steps_in_a_row_break_the_engine() -> None:
    """It continues after two; after the third it is unhealthy and refuses sequences."""
    runner = StubRunner()
    runner.error = RuntimeError("broken kernel")
    async with running(runner) as engine:
        for name in "ab":
            _, finish, _ = await collect(engine, name, [1], LONG)
            assert finish.reason is FinishReason.ERROR
            assert engine.healthy
        _, finish, _ = await collect(engine, "c", [1], LONG)
        assert finish.reason is FinishReason.ERROR
        await wait_broken(engine)
        assert not engine.healthy
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("d", [1], LONG))


async def test_a_sequence_submitted_as_the_thread_ends_gets_a_finish() -> None:
    """A sequence that arrives after the thread has taken its last commands ends at once."""
    runner = StubRunner()
    runner.error, runner.recover_error = RuntimeError("broken"), RuntimeError("device lost")
    engines: list[Engine] = []

    def load() -> Engine:
        engines.append(make_stub_engine(runner))
        return engines[0]

    engine = AsyncEngine(load)
    async with asyncio.timeout(10):
        await engine.start()
        await collect(engine, "a", [1], LONG)
        await wait_broken(engine)
        with pytest.MonkeyPatch.context() as patch:
            # The event loop still sees a healthy engine.
            patch.setattr(AsyncEngine, "healthy", True)
            _, finish, _ = await collect(engine, "b", [1], LONG)
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, EngineUnavailable)
        await engine.stop()


async def test_a_stop_without_drain_aborts_running_sequences() -> None:
    """Each live stream ends with an abort and its cause, so that the caller can fail over."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine:
        task = asyncio.create_task(collect(engine, "a", [1], LONG))
        await until(lambda: num_live(engine) == 1)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # the stop is requested while a step runs
        runner.gate.release(1)
        _, finish, _ = await task
        await stopping
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, EngineUnavailable)


async def test_a_drain_lets_streams_finish_and_refuses_new_ones() -> None:
    """Accepted sequences end normally."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine:
        task = asyncio.create_task(collect(engine, "a", [1], SamplingParams(max_tokens=5)))
        await until(lambda: num_live(engine) == 1)
        stopping = asyncio.create_task(engine.stop(drain_timeout=10))
        await asyncio.sleep(0)
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("b", [1], LONG))
        runner.gate.release(5)
        token_ids, finish, _ = await task
        await stopping
        assert token_ids == expected_tokens([1], 5)
        assert finish.reason is FinishReason.LENGTH


async def test_a_model_that_does_not_load_fails_the_start() -> None:
    """`start` raises the cause, and `stop` has nothing to do."""

    def load() -> None:
        raise ModelLoadError("no such file")

    engine = AsyncEngine(load)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        with pytest.raises(ModelLoadError, match="no such file"):
            await engine.start()
        assert not engine.healthy
        await engine.stop()
