"""Cancellation at every stage in the engine frees the sequence's place within one step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from inference.engine.engine import Engine
from inference.engine.engine_thread import AsyncEngine
from inference.engine.interface import SequenceOutput
from inference.engine.streams import Streams
from inference.sampling.sampling_params import SamplingParams
from inference.scheduler.sequence import Sequence
from tests.helpers import eventually

pytestmark = pytest.mark.timeout(60)

LONG_PROMPT = [number % 190 + 3 for number in range(3000)]
PARAMS = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=900)


class Watched:
    """Counts an engine's steps, and records the step at which each abort is requested and done.

    The event loop's thread requests an abort, and the engine's thread does it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_steps = 0
        self.requested_after: list[int] = []
        self.aborted_after: list[int] = []
        self._step, self._abort = engine.step, engine.abort
        engine.step = self.step  # type: ignore[method-assign]
        engine.abort = self.abort  # type: ignore[method-assign, assignment]

    def step(self) -> object:
        """Count the step, and run it."""
        self.num_steps += 1
        return self._step()

    def abort(self, request_id: str, *args: object) -> object:
        """Abort, and record the step."""
        done = self._abort(request_id, *args)  # type: ignore[arg-type]
        self.aborted_after.append(self.num_steps)
        return done

    def watch(self, streams: Streams) -> None:
        """Record the step at which the streams request an abort."""
        request = streams._abort

        def requested(sequence: Sequence, num_taken: int) -> None:
            self.requested_after.append(self.num_steps)
            request(sequence, num_taken)

        streams._abort = requested


@asynccontextmanager
async def running(load: Callable[[], Engine]) -> AsyncIterator[tuple[AsyncEngine, Watched]]:
    """A started engine, watched; stopped at the end."""
    made: list[Watched] = []

    def watched() -> Engine:
        made.append(Watched(load()))
        return made[0].engine

    engine = AsyncEngine(watched)
    await engine.start()
    made[0].watch(engine._streams)
    try:
        yield engine, made[0]
    finally:
        await engine.stop()


async def leave(
    stream: AsyncGenerator[SequenceOutput, None], engine: AsyncEngine, watched: Watched
) -> None:
    """Close the stream as a cancelled call does, and check that the abort follows in one step."""
    num_aborted = len(watched.aborted_after)
    await stream.aclose()
    await eventually(lambda: len(watched.aborted_after) > num_aborted, "aborted")
    # At most the step that was running; the abort comes before the next one.
    assert watched.aborted_after[-1] - watched.requested_after[-1] <= 1


def free(engine: AsyncEngine) -> bool:
    load = engine.load()
    return load.num_running == load.num_waiting == 0 and load.kv_usage == 0


@pytest.mark.parametrize("stage", ["queued", "prefill", "decode"])
async def test_a_cancelled_sequence_is_freed_within_one_step(
    make_slow_engine: Callable[..., Engine], stage: str
) -> None:
    """Its KV blocks are free as well, and other sequences continue."""
    options = {"max_num_seqs": 1, "max_num_batched_tokens": 16, "max_num_waiting": 4}
    async with running(lambda: make_slow_engine(**options)) as (engine, watched):
        if stage == "queued":
            runs = engine.generate("runs", [5, 6, 7], PARAMS)
            while not (await anext(runs)).token_ids:
                pass
            waits = engine.generate("waits", [5, 6, 7], PARAMS)
            await anext(waits)
            assert engine.load().num_waiting == 1
            await leave(waits, engine, watched)
            await eventually(lambda: engine.load().num_waiting == 0, "no sequence waits")
            assert (await anext(runs)).token_ids  # the other sequence continues
            await leave(runs, engine, watched)
        else:
            prompt = LONG_PROMPT if stage == "prefill" else [5, 6, 7]
            stream = engine.generate("it", prompt, PARAMS)
            output = await anext(stream)
            if stage == "prefill":
                begun = watched.num_steps
                await eventually(lambda: watched.num_steps > begun + 2, "in the prompt")
                assert watched.num_steps < len(prompt) // 16, (
                    "the prefill was too short to be cancelled"
                )
            while stage == "decode" and not output.token_ids:
                output = await anext(stream)
            await leave(stream, engine, watched)
        await eventually(lambda: free(engine), "no sequence and no block is left")
        after = engine.generate("after", [9, 9, 9], SamplingParams(temperature=0.0, max_tokens=2))
        assert [chunk async for chunk in after][-1].finish is not None
