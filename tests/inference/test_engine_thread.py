"""The engine on its thread: streams, coalescing, aborts, failures, start and stop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from inference.engine import Engine
from inference.engine_thread import AsyncEngine
from inference.errors import (
    ContextTooLong,
    DeadlineExceeded,
    EngineUnavailable,
    ModelLoadError,
    Overloaded,
    StepFailed,
)
from inference.interface import Chunk, Finish, FinishReason
from inference.sampling_params import SamplingParams
from tests.inference.stub_runner import StubRunner, make_stub_engine, next_token

LONG = SamplingParams(max_tokens=200)


@asynccontextmanager
async def running(runner: StubRunner, **limits: int) -> AsyncIterator[AsyncEngine]:
    """A started engine over the stub, stopped at the end whatever happens."""
    engine = AsyncEngine(lambda: make_stub_engine(runner, **limits))
    async with asyncio.timeout(20):
        await engine.start()
        try:
            yield engine
        finally:
            if runner.gate is not None:
                runner.gate.release(1000)
            await engine.stop()
            assert not any(thread.name == "engine" for thread in threading.enumerate())


async def until(holds: object) -> None:
    """Waits until a condition on the engine holds; the test's timeout is the limit."""
    assert callable(holds)
    while not holds():
        await asyncio.sleep(0.001)


def num_live(engine: AsyncEngine) -> int:
    """Sequences that run or wait."""
    return engine.load().num_running + engine.load().num_waiting


def expected_tokens(prompt: list[int], num_tokens: int) -> list[int]:
    """What the stub generates."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


async def collect(
    engine: AsyncEngine, request_id: str, prompt: list[int], params: SamplingParams
) -> tuple[list[int], Finish, int]:
    """All tokens, the finish and how many chunks there were."""
    token_ids: list[int] = []
    chunks: list[Chunk] = []
    async with aclosing(engine.generate(request_id, prompt, params)) as stream:
        async for chunk in stream:
            chunks.append(chunk)
            token_ids += chunk.token_ids
    assert [chunk.finish is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[0].token_ids == []
    finish = chunks[-1].finish
    assert finish is not None
    return token_ids, finish, len(chunks)


async def test_many_streams_each_get_their_own_tokens() -> None:
    """Concurrent sequences: every token in order, an empty chunk first, one finish last."""
    async with running(StubRunner(), max_num_waiting=40) as engine:
        params = SamplingParams(max_tokens=30)
        results = await asyncio.gather(
            *(collect(engine, str(n), [n, n + 1], params) for n in range(30))
        )
        for number, (token_ids, finish, _) in enumerate(results):
            assert token_ids == expected_tokens([number, number + 1], 30)
            assert finish.reason is FinishReason.LENGTH
        await until(lambda: engine.load().num_running == 0)
        assert engine.load().num_waiting == 0
        assert engine.load().kv_usage == 0


async def test_one_token_a_chunk_while_the_consumer_keeps_up() -> None:
    """Each step's token can be had before the next step begins."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine, aclosing(engine.generate("a", [1], LONG)) as stream:
        await anext(stream)
        for token_id in expected_tokens([1], 5):
            runner.gate.release()
            assert (await anext(stream)).token_ids == [token_id]


async def test_a_slow_consumer_finds_one_chunk_with_everything() -> None:
    """Tokens coalesce while nobody takes them; nothing is lost and nothing queues."""
    runner = StubRunner()
    async with running(runner) as engine, aclosing(engine.generate("slow", [1], LONG)) as stream:
        await anext(stream)
        quick, _, _ = await collect(engine, "quick", [2], LONG)
        await until(lambda: num_live(engine) == 0)
        chunk = await anext(stream)
        assert len(quick) == 200
        assert chunk.token_ids == expected_tokens([1], 200)
        assert chunk.finish is not None
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_closing_a_stream_frees_its_blocks_within_one_step() -> None:
    """After the step that was running, the sequence is in no further batch and holds nothing."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine:
        other = asyncio.create_task(collect(engine, "other", [5], SamplingParams(max_tokens=50)))
        stream = engine.generate("gone", [1] * 9, LONG)
        await anext(stream)
        for _ in range(3):
            runner.gate.release()
            await anext(stream)
        await stream.aclose()
        num_batches = len(runner.batches)
        runner.gate.release(3)
        await until(lambda: len(runner.batches) >= num_batches + 3)
        assert all("gone" not in batch for batch in runner.batches[num_batches + 1 :])
        await until(lambda: engine.load().num_running == 1)
        assert engine.load().kv_usage <= 2 / 64
        runner.gate.release(100)
        token_ids, _, _ = await other
        assert token_ids == expected_tokens([5], 50)


async def test_cancelling_the_consumer_aborts_the_sequence() -> None:
    """A cancelled task frees what its stream held, and its id can be used again."""
    async with running(StubRunner()) as engine:
        streaming = asyncio.Event()

        async def consume() -> None:
            async with aclosing(engine.generate("a", [1], SamplingParams())) as stream:
                async for _ in stream:
                    streaming.set()
                    await asyncio.sleep(3600)

        task = asyncio.create_task(consume())
        await streaming.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.load().kv_usage == 0)
        assert engine.load().num_waiting == 0
        token_ids, _, _ = await collect(engine, "a", [1], SamplingParams(max_tokens=2))
        assert token_ids == expected_tokens([1], 2)


async def test_refusals_come_before_the_first_chunk() -> None:
    """What cannot fit, and what there is no room for, is raised by the first anext."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner, max_num_seqs=1, max_num_waiting=1, max_context=50) as engine:
        with pytest.raises(ContextTooLong):
            await anext(engine.generate("long", [1] * 50, SamplingParams(max_tokens=1)))
        params = SamplingParams(max_tokens=3)
        streams = [engine.generate(name, [1], params) for name in "ab"]
        for stream in streams:
            await anext(stream)
        with pytest.raises(Overloaded):
            await anext(engine.generate("c", [1], params))
        assert num_live(engine) == 2
        for stream in streams:
            await stream.aclose()
        stream = engine.generate("c", [1], params)
        await anext(stream)
        await stream.aclose()


async def test_the_loop_is_free_during_a_step() -> None:
    """A step that takes for ever does not hold up health, load or a refusal."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine, aclosing(engine.generate("a", [1], LONG)) as stream:
        await anext(stream)
        begun = time.monotonic()
        await asyncio.sleep(0.05)
        assert engine.healthy
        assert num_live(engine) == 1, "the step that runs has taken it up; it still counts"
        assert time.monotonic() - begun < 5


async def test_an_expired_deadline_ends_the_stream_with_its_cause() -> None:
    """Tokens until then, then an abort that says why."""
    async with running(StubRunner()) as engine:
        stream = engine.generate("a", [1], LONG, deadline=time.monotonic() - 0.001)
        chunks = [chunk async for chunk in stream]
        finish = chunks[-1].finish
        assert finish is not None
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, DeadlineExceeded)


async def test_a_broken_step_ends_its_streams_and_the_engine_goes_on() -> None:
    """Every stream in the step gets an error finish; the next request is served."""
    runner = StubRunner()
    runner.error = RuntimeError("broken kernel")
    async with running(runner) as engine:
        _, finish, _ = await collect(engine, "a", [1], LONG)
        assert finish.reason is FinishReason.ERROR
        assert isinstance(finish.error, StepFailed)
        assert engine.healthy
        runner.error = None
        token_ids, _, _ = await collect(engine, "b", [1], SamplingParams(max_tokens=2))
        assert token_ids == expected_tokens([1], 2)


async def test_an_unhealthy_engine_ends_everything_and_refuses() -> None:
    """No stream is left hanging when the engine cannot go on."""
    runner = StubRunner()
    runner.error, runner.recover_error = RuntimeError("broken"), RuntimeError("device lost")
    async with running(runner, max_num_seqs=1) as engine:
        results = await asyncio.gather(*(collect(engine, name, [1], LONG) for name in "abc"))
        reasons = {finish.reason for _, finish, _ in results}
        assert reasons == {FinishReason.ERROR, FinishReason.ABORT}
        await engine.wait_broken()
        assert not engine.healthy
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("d", [1], LONG))


async def test_closing_a_stream_that_waits_takes_it_out_of_the_line() -> None:
    """It is never part of a step, and who waits behind it gets its turn."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner, max_num_seqs=1) as engine:
        params = SamplingParams(max_tokens=2)
        first = asyncio.create_task(collect(engine, "first", [1], params))
        await until(lambda: num_live(engine) == 1)
        waiting = engine.generate("waiting", [2], params)
        await anext(waiting)
        last = asyncio.create_task(collect(engine, "last", [3], params))
        await until(lambda: num_live(engine) == 3)
        await waiting.aclose()
        assert num_live(engine) == 2
        runner.gate.release(100)
        await first
        token_ids, _, _ = await last
        assert token_ids == expected_tokens([3], 2)
        assert all("waiting" not in batch for batch in runner.batches)
        await until(lambda: engine.load().kv_usage == 0)


async def test_three_broken_steps_in_a_row_break_the_engine() -> None:
    """Twice it goes on; the third time it says so, and takes nothing any more."""
    runner = StubRunner()
    runner.error = RuntimeError("broken kernel")
    async with running(runner) as engine:
        for name in "ab":
            _, finish, _ = await collect(engine, name, [1], LONG)
            assert finish.reason is FinishReason.ERROR
            assert engine.healthy
        _, finish, _ = await collect(engine, "c", [1], LONG)
        assert finish.reason is FinishReason.ERROR
        await engine.wait_broken()
        assert not engine.healthy
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("d", [1], LONG))


async def test_a_sequence_that_meets_the_end_of_the_thread_gets_its_finish() -> None:
    """Taken as the engine breaks, after its last look at what is new: ended, not left hanging."""
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
        await engine.wait_broken()
        with pytest.MonkeyPatch.context() as patch:
            # As the event loop saw it a moment before the thread found out.
            patch.setattr(AsyncEngine, "healthy", True)
            _, finish, _ = await collect(engine, "b", [1], LONG)
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, EngineUnavailable)
        await engine.stop()


async def test_a_stop_without_drain_aborts_what_runs() -> None:
    """Each live stream ends with an abort that names the cause, so that it can go elsewhere."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine:
        task = asyncio.create_task(collect(engine, "a", [1], LONG))
        await until(lambda: num_live(engine) == 1)
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # the stop is asked for while a step runs
        runner.gate.release(1)
        _, finish, _ = await task
        await stopping
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, EngineUnavailable)


async def test_a_drain_lets_streams_finish_and_refuses_new_ones() -> None:
    """What was accepted ends as it would have."""
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
    """The cause reaches whoever starts the engine, and there is nothing to stop."""

    def load() -> None:
        raise ModelLoadError("no such file")

    engine = AsyncEngine(load)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        with pytest.raises(ModelLoadError, match="no such file"):
            await engine.start()
        assert not engine.healthy
        await engine.stop()


async def test_an_idle_engine_sleeps() -> None:
    """Without work the thread takes no step and next to no CPU time."""
    runner = StubRunner()
    async with running(runner) as engine:
        await collect(engine, "a", [1], SamplingParams(max_tokens=2))
        num_steps = runner.num_steps
        begun = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - begun < 0.1
        assert runner.num_steps == num_steps
