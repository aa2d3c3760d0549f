"""Streams that outlive their engine."""

from __future__ import annotations

import pytest

from mesh.errors import ErrorKind, MeshError
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, orchestrator
from tests.orchestrator.test_service import generate, request, text_of


@pytest.mark.parametrize("fail_after", [0, 1, 7, 20])
async def test_a_lost_engine_costs_the_client_nothing(fail_after: int) -> None:
    """The other one goes on with what was delivered, and the text is the same."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = fail_after
    async with orchestrator(*engines) as running:
        # Whichever is chosen first fails; the one that takes over does not.
        async def lose_one() -> str:
            events = await generate(running, request())
            kinds = [event.WhichOneof("event") for event in events]
            assert kinds.count("finish") == kinds.count("started") == 1
            assert events[-1].finish.usage.completion_tokens == len(engines[0].ids)
            return text_of(events)

        chosen = running.service._replicas.pick("fake", [0])
        survivor = engines[[u.address for u in running.upstreams].index(chosen.address)]
        survivor.fail_after = None
        texts = [await lose_one()]
        # Prompts prefer different replicas: try until both have been asked first.
        for number in range(20):
            await eventually(lambda: len(running.service._replicas.ready) == 2, "both ready")
            texts.append(text_of(await generate(running, request(f"Hello {number}"))))
    assert set(texts) == {SCRIPT}
    resumed = [r.num_resumed_tokens for r in survivor.requests if r.num_resumed_tokens]
    assert resumed == [fail_after] * len(resumed)
    assert fail_after == 0 or resumed


async def test_a_request_that_loses_two_engines_is_given_up() -> None:
    """It may be what kills them."""
    engines = [FakeInference(), FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = 3
    async with orchestrator(*engines) as running:
        with pytest.raises(MeshError, match="given up after 2") as caught:
            await generate(running, request())
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert sum(len(engine.requests) for engine in engines) == 2


async def test_the_only_engine_gets_a_second_chance() -> None:
    """What broke may have been the connection alone."""
    engine = FakeInference()
    engine.fail_after, engine.num_failing = 5, 1
    async with orchestrator(engine) as running:
        assert text_of(await generate(running, request())) == SCRIPT
    assert [asked.num_resumed_tokens for asked in engine.requests] == [0, 5]


async def test_a_full_engine_sends_the_request_to_the_other() -> None:
    """Overloaded is no loss: the next one is asked, and the caller is told if all are full."""
    engines = [FakeInference(), FakeInference()]
    full = MeshError(ErrorKind.OVERLOADED, "full", retry_after=2.5)
    engines[0].refusal = full
    async with orchestrator(*engines) as running:
        for number in range(8):
            assert text_of(await generate(running, request(f"Hello {number}"))) == SCRIPT
        engines[1].refusal = full
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert len(running.service._replicas.ready) == 2
    assert caught.value.kind is ErrorKind.OVERLOADED
    assert caught.value.retry_after == 2.5


async def test_no_engine_is_unavailable() -> None:
    """Told at once, with a delay."""
    async with orchestrator() as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after is not None


async def test_an_engine_that_drains_is_left_alone() -> None:
    """Its health tells, before any request is lost on it."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        await running.upstreams[0].server.set_ready(False)
        await eventually(lambda: len(running.service._replicas.ready) == 1, "one is left")
        for number in range(6):
            await generate(running, request(f"Hello {number}"))
        assert engines[0].requests == []
        await running.upstreams[0].server.set_ready(True)
        await eventually(lambda: len(running.service._replicas.ready) == 2, "it is back")
