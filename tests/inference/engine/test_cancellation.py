"""A cancellation at every stage in the engine: the slot is free within one step."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from inference.engine.engine import Engine
from inference.engine.engine_thread import AsyncEngine
from inference.engine.interface import SequenceOutput
from inference.engine.streams import Streams
from inference.sampling.sampling_params import SamplingParams
from tests.helpers import eventually

pytestmark = pytest.mark.timeout(60)

LONG_PROMPT = [number % 190 + 3 for number in range(3000)]
PARAMS = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=900)


class Watched:
    """An engine, how many steps it has begun, and after which one each abort was asked and done.

    It is asked for in the event loop's thread, which may be held up before, and done in the
    engine's.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_steps = 0
        self.asked_after: list[int] = []
        self.aborted_after: list[int] = []
        self._step, self._abort = engine.step, engine.abort
        engine.step = self.step  # type: ignore[method-assign]
        engine.abort = self.abort  # type: ignore[method-assign, assignment]

    def step(self) -> object:
        """As the engine's own."""
        self.num_steps += 1
        return self._step()

    def abort(self, request_id: str, *args: object) -> object:
        """As the engine's own."""
        done = self._abort(request_id, *args)  # type: ignore[arg-type]
        self.aborted_after.append(self.num_steps)
        return done

    def watch(self, streams: Streams) -> None:
        """Notes when they ask for an abort."""
        ask = streams._abort

        def asked(request_id: str) -> None:
            self.asked_after.append(self.num_steps)
            ask(request_id)

        streams._abort = asked


@asynccontextmanager
async def running(load: Callable[[], Engine]) -> AsyncIterator[tuple[AsyncEngine, Watched]]:
    """One place in the batch, and prompts that take many steps."""
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
    """Closes the stream as a cancelled call does, and checks how long its slot stayed taken."""
    num_aborted = len(watched.aborted_after)
    await stream.aclose()
    await eventually(lambda: len(watched.aborted_after) > num_aborted, "aborted")
    # The step that ran at that moment, at most; the abort comes before the next.
    assert watched.aborted_after[-1] - watched.asked_after[-1] <= 1


def free(engine: AsyncEngine) -> bool:
    load = engine.load()
    return load.num_running == load.num_waiting == 0 and load.kv_usage == 0


@pytest.mark.parametrize("stage", ["queued", "prefill", "decode"])
async def test_the_slot_is_free_within_one_step(
    make_slow_engine: Callable[..., Engine], stage: str
) -> None:
    """Also its KV blocks; and whoever waited runs then."""
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
            await eventually(lambda: engine.load().num_waiting == 0, "nobody waits")
            assert (await anext(runs)).token_ids  # the one beside it goes on
            await leave(runs, engine, watched)
        else:
            prompt = LONG_PROMPT if stage == "prefill" else [5, 6, 7]
            stream = engine.generate("it", prompt, PARAMS)
            chunk = await anext(stream)
            if stage == "prefill":
                begun = watched.num_steps
                await eventually(lambda: watched.num_steps > begun + 2, "in the prompt")
                assert watched.num_steps < len(prompt) // 16, "too fast to be cut in the prompt"
            while stage == "decode" and not chunk.token_ids:
                chunk = await anext(stream)
            await leave(stream, engine, watched)
        await eventually(lambda: free(engine), "everything is free")
        after = engine.generate("after", [9, 9, 9], SamplingParams(temperature=0.0, max_tokens=2))
        assert [chunk async for chunk in after][-1].finish is not None
