"""An engine thread with the stub runner, and a consumer of its streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from inference.engine.engine_thread import AsyncEngine
from inference.engine.interface import Finish, SequenceOutput
from inference.sampling.sampling_params import SamplingParams
from tests.inference.stub_runner import StubRunner, make_stub_engine, next_token

LONG = SamplingParams(max_tokens=200)


@asynccontextmanager
async def running(
    runner: StubRunner, *, on_cpu: bool = False, step_timeout: float = 30.0, **options: Any
) -> AsyncIterator[AsyncEngine]:
    """A started engine with the stub runner, stopped at the end."""
    engine = AsyncEngine(
        lambda: make_stub_engine(runner, **options), on_cpu=on_cpu, step_timeout=step_timeout
    )
    async with asyncio.timeout(20):
        await engine.start()
        try:
            yield engine
        finally:
            if runner.gate is not None:
                runner.gate.release(1000)
            await engine.stop()
            await until(lambda: all(each.name != "engine" for each in threading.enumerate()))


async def until(holds: object) -> None:
    """Poll until a condition holds; the test's timeout is the limit."""
    assert callable(holds)
    while not holds():
        await asyncio.sleep(0.001)


async def wait_broken(engine: AsyncEngine) -> None:
    """Wait until the engine is unhealthy for good."""
    async for _ in engine.health_changes():
        pass


def num_live(engine: AsyncEngine) -> int:
    """Number of running and waiting sequences."""
    return engine.load().num_running + engine.load().num_waiting


def expected_tokens(prompt: list[int], num_tokens: int) -> list[int]:
    """The tokens that the stub generates."""
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(next_token(ids))
    return ids[len(prompt) :]


async def collect(
    engine: AsyncEngine, request_id: str, prompt: list[int], params: SamplingParams
) -> tuple[list[int], Finish, int]:
    """All tokens, the finish and the number of outputs."""
    token_ids: list[int] = []
    outputs: list[SequenceOutput] = []
    async with aclosing(engine.generate(request_id, prompt, params)) as stream:
        async for output in stream:
            outputs.append(output)
            token_ids += output.token_ids
    assert [output.finish is not None for output in outputs] == [False] * (len(outputs) - 1) + [
        True
    ]
    assert outputs[0].token_ids == []
    finish = outputs[-1].finish
    assert finish is not None
    return token_ids, finish, len(outputs)
