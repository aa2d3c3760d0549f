"""The engine thread: streams, coalescing, aborts, refusals, idle behaviour."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack, aclosing

import pytest

from inference.engine.errors import ContextTooLong, DeadlineExceeded, Overloaded
from inference.sampling.sampling_params import SamplingParams
from mesh.context import RequestContext, use_request
from mesh.protocol.finish import FinishReason
from tests.inference.stub_engine import LONG, collect, expected_tokens, num_live, running, until
from tests.inference.stub_runner import StubRunner


@pytest.mark.parametrize("supports_async_scheduling", [False, True])
async def test_many_streams_each_get_their_own_tokens(supports_async_scheduling: bool) -> None:
    """Concurrent sequences: an empty output first, every token in order, one finish last."""
    async with running(
        StubRunner(supports_async_scheduling=supports_async_scheduling), max_num_waiting=40
    ) as engine:
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


async def test_each_output_has_one_token_while_the_consumer_keeps_up() -> None:
    """Each step's token is available before the next step begins."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine, aclosing(engine.generate("a", [1], LONG)) as stream:
        await anext(stream)
        for token_id in expected_tokens([1], 5):
            runner.gate.release()
            assert (await anext(stream)).token_ids == [token_id]


async def test_a_slow_consumer_gets_all_tokens_in_one_output() -> None:
    """Tokens coalesce until they are taken; none is lost, and outputs do not queue."""
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
    """After the step that was running, the sequence runs in no further step and has no blocks."""
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
    """A cancelled task's sequence is freed, and its request id can be used again."""
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


async def test_refusals_come_before_the_first_output() -> None:
    """The first `anext` raises for a sequence that cannot fit, and for a full queue."""
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


async def test_a_request_of_many_sequences_leaves_places_to_others() -> None:
    """Its further sequences are refused before the queue is full; another request's is not."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    params = SamplingParams(max_tokens=3)
    async with (
        running(runner, max_num_seqs=8, max_num_waiting=8) as engine,
        AsyncExitStack() as stack,
    ):

        async def start(name: str) -> None:
            stream = engine.generate(name, [1], params)
            stack.push_async_callback(stream.aclose)
            await anext(stream)

        with use_request(RequestContext(request_id="many")):
            for number in range(14):
                await start(f"many-{number}")
            with pytest.raises(Overloaded):
                await start("many-14")
        for name in "ab":
            with use_request(RequestContext(request_id=name)):
                await start(name)
        with use_request(RequestContext(request_id="c")), pytest.raises(Overloaded):
            await start("c")


async def test_the_loop_is_free_during_a_step() -> None:
    """A long step does not delay health, load or a refusal."""
    runner = StubRunner()
    runner.gate = threading.Semaphore(0)
    async with running(runner) as engine, aclosing(engine.generate("a", [1], LONG)) as stream:
        await anext(stream)
        begun = time.monotonic()
        await asyncio.sleep(0.05)
        assert engine.healthy
        assert num_live(engine) == 1, "a sequence in the current step counts as live"
        assert time.monotonic() - begun < 5


async def test_an_expired_deadline_ends_the_stream_with_its_cause() -> None:
    """The stream has tokens until the deadline, then an abort with the cause."""
    async with running(StubRunner()) as engine:
        stream = engine.generate("a", [1], LONG, deadline=time.monotonic() - 0.001)
        chunks = [chunk async for chunk in stream]
        finish = chunks[-1].finish
        assert finish is not None
        assert finish.reason is FinishReason.ABORT
        assert isinstance(finish.error, DeadlineExceeded)


async def test_closing_a_waiting_stream_removes_it_from_the_queue() -> None:
    """It is never part of a step, and the next sequence in the queue runs."""
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


async def test_an_idle_engine_sleeps() -> None:
    """Without work the thread runs no step and uses almost no CPU time."""
    runner = StubRunner()
    async with running(runner) as engine:
        await collect(engine, "a", [1], SamplingParams(max_tokens=2))
        num_steps = runner.num_steps
        begun = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - begun < 0.1
        assert runner.num_steps == num_steps
