"""The consumers' side of an engine: in which order a step's outputs reach them."""

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
    """Streams of sequences that a test steps itself; `seen` are the requests that were told."""

    def __init__(self, *names: str, max_messages_per_second: float = 0.0) -> None:
        self.seen: list[str] = []
        self.sequences: dict[str, Sequence] = {}
        self.streams = Streams(
            submit=lambda sequence: self.sequences.update({sequence.request_id: sequence}),
            abort=lambda _: None,
            max_messages_per_second=max_messages_per_second,
        )
        self._tasks = [asyncio.create_task(self._consume(name)) for name in names]

    async def _consume(self, name: str) -> None:
        async for chunk in self.streams.generate(make_sequence(name, [1])):
            if chunk.token_ids or chunk.finish is not None:
                self.seen.append(name)

    async def deliver(self, *outputs: StepOutput) -> list[str]:
        """Who is told of a step's outputs, in that order."""
        self.seen.clear()
        self.streams.deliver(outputs)
        await asyncio.sleep(0.01)
        return list(self.seen)

    async def close(self) -> None:
        """Every consumer has seen an end."""
        await asyncio.gather(*self._tasks)
        assert self.streams.num_live == 0


def token(name: str) -> StepOutput:
    """A token of a sequence."""
    return StepOutput(name, [7], [], None)


def ended(sequence: Sequence) -> StepOutput:
    """The last token of a sequence."""
    finish: Finish = sequence.end(FinishReason.STOP, 0.0)
    return StepOutput(sequence.request_id, [7], [], finish)


async def test_first_tokens_go_first() -> None:
    """Whoever has had a token waits behind those that have had none; else in the step's order."""
    engine = Engine("a", "b", "c", "d")
    await asyncio.sleep(0)
    assert await engine.deliver(token("c"), token("a")) == ["c", "a"]
    outputs = [token("a"), token("b"), token("c"), token("d")]
    assert await engine.deliver(*outputs) == ["b", "d", "a", "c"]
    assert await engine.deliver(*outputs) == ["a", "b", "c", "d"]
    await engine.deliver(*map(ended, engine.sequences.values()))
    await engine.close()


async def test_ends_go_last() -> None:
    """The end of an answer waits behind others' tokens, unless it is all that the answer has."""
    engine = Engine("a", "b", "c", "d")
    await asyncio.sleep(0)
    await engine.deliver(token("a"), token("b"), token("c"))
    outputs = [ended(engine.sequences["a"]), token("b"), ended(engine.sequences["d"]), token("c")]
    assert await engine.deliver(*outputs) == ["d", "b", "c", "a"]
    await engine.deliver(*(ended(engine.sequences[name]) for name in "bc"))
    await engine.close()


async def test_an_end_without_a_token_is_a_first_one() -> None:
    """A request that fails before it has had a token is told at once; nobody is told twice."""
    engine = Engine("a", "b")
    await asyncio.sleep(0)
    await engine.deliver(token("a"))
    failed = engine.sequences["b"].refuse(StepFailed("no room"))
    outputs = [ended(engine.sequences["a"]), StepOutput("b", [], [], failed)]
    assert await engine.deliver(*outputs) == ["b", "a"]
    assert await engine.deliver(*outputs) == []
    await engine.close()


async def test_a_stream_that_could_send_at_once_waits_a_little() -> None:
    """However many chunks are allowed: what comes close behind another one goes together."""
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
    assert loop.time() - began >= MIN_INTERVAL_SECONDS / 2, "it has waited for its turn"
    assert engine.seen == ["a", "a"], "and then all went together"
    await engine.deliver(ended(engine.sequences["a"]))
    await engine.close()
