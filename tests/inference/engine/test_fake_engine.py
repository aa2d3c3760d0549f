"""The fake engine: no torch, reproducible ids, real load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from inference.engine.errors import ContextTooLong, EngineUnavailable, Overloaded
from inference.engine.fake_engine import FakeEngine
from inference.sampling.sampling_params import SamplingParams
from mesh.protocol.finish import FinishReason

LIMITED = SamplingParams(max_tokens=60)
LONG = SamplingParams(max_tokens=1000)


@asynccontextmanager
async def running(**options: float) -> AsyncIterator[FakeEngine]:
    """A started fake engine."""
    engine = FakeEngine("fake", **options)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def collect(
    engine: FakeEngine, request_id: str, prompt: list[int], num_tokens: int, num_resumed: int = 0
) -> list[int]:
    """The token ids of one stream."""
    params = SamplingParams(max_tokens=num_tokens)
    stream = engine.generate(request_id, prompt, params, num_resumed_tokens=num_resumed)
    token_ids: list[int] = []
    async with aclosing(stream):
        async for chunk in stream:
            token_ids += chunk.token_ids
    assert chunk.finish is not None
    assert chunk.finish.reason is FinishReason.LENGTH
    return token_ids


def test_the_fake_engine_and_the_scheduler_import_no_torch() -> None:
    """Policy, streams and the fake engine run without torch."""
    engine = "fake_engine, engine, engine_thread, admission"
    scheduler = "scheduler, block_manager, sequence"
    code = (
        f"import sys; from inference.engine import {engine}; "
        f"from inference.scheduler import {scheduler}; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0


async def test_the_ids_depend_on_the_prompt_alone() -> None:
    """Same prompt, same ids; a stream resumed on another engine continues with the same ids."""
    async with running() as engine:
        first = await collect(engine, "a", [1, 2, 3], 20)
        assert len(first) == 20
        assert await collect(engine, "b", [1, 2, 3], 20) == first
        assert await collect(engine, "c", [1, 2, 4], 20) != first
        assert await collect(engine, "d", [1, 2, 3, *first[:8]], 20, 8) == first[8:]


async def test_the_speed_is_per_stream() -> None:
    """Ten streams at 200 tokens a second take as long as one."""
    async with running(tokens_per_second=200) as engine:
        begun = time.monotonic()
        await asyncio.gather(*(collect(engine, str(n), [n], 40) for n in range(10)))
        assert 0.19 <= time.monotonic() - begun < 2


async def test_a_slow_consumer_gets_all_tokens_in_one_output() -> None:
    """The pending output grows while other streams are served."""
    async with running() as engine, aclosing(engine.generate("slow", [1], LONG)) as stream:
        first = await anext(stream)
        assert len(first.token_ids) == 1, "at full speed the first token is ready at once"
        await collect(engine, "quick", [2], 50)
        chunk = await anext(stream)
        assert len(chunk.token_ids) >= 49


async def test_an_aborted_sequence_leaves_the_load_at_once() -> None:
    """The load counts running and waiting sequences, and no aborted ones."""
    async with running(tokens_per_second=200, max_num_seqs=2, max_num_waiting=1) as engine:
        streams = [engine.generate(str(n), [n], LONG) for n in range(3)]
        for stream in streams:
            await anext(stream)
        await anext(streams[0])
        assert (engine.load().num_running, engine.load().num_waiting) == (2, 1)
        with pytest.raises(Overloaded):
            await anext(engine.generate("x", [1], LONG))
        await streams[0].aclose()
        await anext(streams[2])
        assert (engine.load().num_running, engine.load().num_waiting) == (2, 0)
        for stream in streams[1:]:
            await stream.aclose()
        assert engine.load().kv_usage == 0


async def test_it_refuses_and_stops_as_the_real_engine_does() -> None:
    """A sequence that cannot fit is refused; a stop ends live streams with a cause."""
    async with running(tokens_per_second=50, max_context=100) as engine:
        with pytest.raises(ContextTooLong):
            await anext(engine.generate("a", [1] * 100, SamplingParams(max_tokens=1)))
        stream = engine.generate("b", [1], SamplingParams())
        await anext(stream)
        await engine.stop()
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].finish is not None
        assert chunks[-1].finish.reason is FinishReason.ABORT
        assert isinstance(chunks[-1].finish.error, EngineUnavailable)
        with pytest.raises(EngineUnavailable):
            await anext(engine.generate("c", [1], LONG))


async def test_an_expired_deadline_ends_the_stream() -> None:
    """As in the real engine, the sequence runs in no further step."""
    async with running(tokens_per_second=100) as engine:
        stream = engine.generate("a", [1], LONG, deadline=time.monotonic() + 0.05)
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].finish is not None
        assert chunks[-1].finish.reason is FinishReason.ABORT


async def test_with_many_streams_outputs_have_several_tokens() -> None:
    """Ten streams share 100 outputs a second; first tokens and finishes are not delayed."""
    async with running(tokens_per_second=100, max_messages_per_second=100) as engine:

        async def watch(number: int) -> tuple[float, list[int]]:
            began = time.monotonic()
            first, sizes = 0.0, []
            async for chunk in engine.generate(str(number), [number], LIMITED):
                if chunk.token_ids:
                    first = first or time.monotonic() - began
                    sizes.append(len(chunk.token_ids))
            return first, sizes

        streams = await asyncio.gather(*map(watch, range(10)))
    for first, sizes in streams:
        assert sum(sizes) == 60
        assert sizes[0] <= 5, "the first token was delayed"
        assert first < 1
        # 0.1 s is ten tokens; without a limit there would be sixty outputs.
        assert len(sizes) <= 12
