"""Streams: the order in which a step's outputs reach their consumers."""

from __future__ import annotations

import asyncio

from inference.engine.errors import StepFailed
from inference.engine.interface import Finish
from inference.engine.streams import MIN_INTERVAL_SECONDS, Streams
from inference.scheduler.sequence import Sequence
from inference.scheduler.step_result import StepOutput
from mesh.protocol.finish import FinishReason
from tests.inference.stub_runner import make_sequence


class Engine:
    """Streams whose outputs the test delivers; `seen` has the request ids in order of arrival."""

    def __init__(self, *names: str, max_messages_per_second: float = 0.0) -> None:
        self.seen: list[str] = []
        self.sequences: dict[str, Sequence] = {}
        self.streams = Streams(
            submit=lambda sequence: self.sequences.update({sequence.request_id: sequence}),
            abort=lambda *_: None,
            max_messages_per_second=max_messages_per_second,
        )
        self._tasks = [asyncio.create_task(self._consume(name)) for name in names]

    async def _consume(self, name: str) -> None:
        async for output in self.streams.generate(make_sequence(name, [1])):
            if output.token_ids or output.finish is not None:
                self.seen.append(name)

    async def deliver(self, *outputs: StepOutput) -> list[str]:
        """Deliver a step's outputs; returns the request ids in the order in which they arrive."""
        self.seen.clear()
        self.streams.deliver(outputs)
        await asyncio.sleep(0.01)
        return list(self.seen)

    async def close(self) -> None:
        """Wait until every consumer has its finish."""
        await asyncio.gather(*self._tasks)
        assert self.streams.num_live == 0


def token(name: str) -> StepOutput:
    """An output with one token."""
    return StepOutput(name, [7], [], None)


def ended(sequence: Sequence) -> StepOutput:
    """An output with the last token and the finish."""
    finish: Finish = sequence.end(FinishReason.STOP, 0.0)
    return StepOutput(sequence.request_id, [7], [], finish)


async def test_first_tokens_go_first() -> None:
    """First tokens are delivered before others; otherwise the step's order is kept."""
    engine = Engine("a", "b", "c", "d")
    await asyncio.sleep(0)
    assert await engine.deliver(token("c"), token("a")) == ["c", "a"]
    outputs = [token("a"), token("b"), token("c"), token("d")]
    assert await engine.deliver(*outputs) == ["b", "d", "a", "c"]
    assert await engine.deliver(*outputs) == ["a", "b", "c", "d"]
    await engine.deliver(*map(ended, engine.sequences.values()))
    await engine.close()


async def test_finishes_go_last() -> None:
    """A finish is delivered after other tokens, unless it comes with the first token."""
    engine = Engine("a", "b", "c", "d")
    await asyncio.sleep(0)
    await engine.deliver(token("a"), token("b"), token("c"))
    outputs = [ended(engine.sequences["a"]), token("b"), ended(engine.sequences["d"]), token("c")]
    assert await engine.deliver(*outputs) == ["d", "b", "c", "a"]
    await engine.deliver(*(ended(engine.sequences[name]) for name in "bc"))
    await engine.close()


async def test_a_finish_without_tokens_counts_as_first() -> None:
    """A request that fails before its first token is notified first, and once."""
    engine = Engine("a", "b")
    await asyncio.sleep(0)
    await engine.deliver(token("a"))
    failed = engine.sequences["b"].refuse(StepFailed("no room"))
    outputs = [ended(engine.sequences["a"]), StepOutput("b", [], [], failed)]
    assert await engine.deliver(*outputs) == ["b", "a"]
    assert await engine.deliver(*outputs) == []
    await engine.close()


async def test_outputs_of_a_stream_keep_a_minimum_distance() -> None:
    """Tokens that follow within MIN_INTERVAL_SECONDS coalesce, whatever the rate limit."""
    engine = Engine("a", max_messages_per_second=1e6)
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    engine.streams.deliver([token("a")])
    await asyncio.sleep(0)
    began = loop.time()
    for _ in range(3):
        engine.streams.deliver([token("a")])
        await asyncio.sleep(0)
    assert engine.seen == ["a"]
    while len(engine.seen) == 1:
        await asyncio.sleep(0.0005)
    assert loop.time() - began >= MIN_INTERVAL_SECONDS / 2, "the second output is delayed"
    assert engine.seen == ["a", "a"], "the delayed tokens arrive in one output"
    await engine.deliver(ended(engine.sequences["a"]))
    await engine.close()
