"""Streams that outlive their engine."""

from __future__ import annotations

import re

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, kinds_of, request, text_of
from tests.orchestrator.tokenizers_made import byte_level


def in_order(running: Orchestrator) -> list[FakeInference]:
    """The engines, first the one that gets the request for "Hello"."""
    ids = byte_level().encode("Hello", add_special_tokens=False).ids
    address = running.service._replicas.pick("fake", ids).address
    engines = zip(running.upstreams, running.engines, strict=True)
    return [each for _, each in sorted(engines, key=lambda pair: pair[0].address != address)]


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
            kinds = kinds_of(events)
            assert kinds.count("finish") == kinds.count("started") == 1
            assert events[-1].finish.usage.completion_tokens == len(engines[0].ids)
            return text_of(events)

        chosen = running.service._replicas.pick("fake", [0])
        survivor = engines[[u.address for u in running.upstreams].index(chosen.address)]
        survivor.fail_after = None
        texts = [await lose_one()]
        # Prompts prefer different replicas: try until both have been asked first.
        for number in range(8):
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


async def test_an_engine_lost_before_it_accepts_is_no_matter() -> None:
    """Those that refuse as they drain may be many; the request goes to the one that takes it."""
    engines = [FakeInference(), FakeInference(), FakeInference(), FakeInference()]
    for engine in engines[:3]:
        engine.refusal = MeshError(ErrorKind.UNAVAILABLE, "draining")
    async with orchestrator(*engines) as running:
        events = await generate(running, request())
    assert text_of(events) == SCRIPT
    assert [event.HasField("started") for event in events].count(True) == 1
    assert engines[3].requests[0].num_resumed_tokens == 0


async def test_what_takes_over_is_asked_for_the_same() -> None:
    """Prompt, what was delivered, and the very same sampling: the limit counts from the start."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        first.fail_after = 5
        asked = request(sampling={"max_tokens": 12, "seed": 3, "presence_penalty": 1})
        events = await generate(running, asked)
    [one], [two] = first.requests, second.requests
    assert two.sampling == one.sampling
    assert list(two.token_ids) == [*one.token_ids, *first.ids[:5]]
    assert two.num_resumed_tokens == 5
    assert events[-1].finish.usage.completion_tokens == 12
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].finish.usage.prompt_tokens == len(one.token_ids)


async def test_an_engine_lost_after_its_last_token_is_not_replaced() -> None:
    """All that was asked for is there; only the finish is missing, and it is known."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        first.no_finish = True
        events = await generate(running, request(sampling={"max_tokens": 6}))
    assert second.requests == []
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].finish.usage.completion_tokens == 6
    assert events[-1].finish.usage.prompt_tokens == events[0].started.prompt_tokens


async def test_a_stop_string_is_found_across_the_loss() -> None:
    """What was held back of the lost engine's text joins what the other one says."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        cut = SCRIPT.index("jumps") + 3
        first.fail_after = len(byte_level().encode(SCRIPT[:cut], add_special_tokens=False).ids)
        events = await generate(running, request(stop=["jumps over"]))
        await eventually(lambda: second.num_open == 0, "the engine is free", 1)
    assert text_of(events) == SCRIPT[: SCRIPT.index("jumps")]
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_STOP


async def test_a_summary_outlives_its_engine() -> None:
    """The search's stream goes on as any other."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after, engine.delay = 8, 0.01
    async with orchestrator(*engines) as running:
        asked = orchestrator_pb2.SummarizeRequest(query="fox")
        async with open_stream(running.stub.SummarizeStream, asked) as responses:
            events = [await anext(responses), await anext(responses)]
            [other] = [engine for engine in engines if not engine.requests]
            other.fail_after = None
            events += [event async for event in responses]
    # Nothing was found, so no source has a number: citations of none are taken out.
    assert text_of(events) == re.sub(r" \[\d\]", "", SCRIPT)
    assert [event.HasField("finish") for event in events].count(True) == 1
    assert other.requests[0].num_resumed_tokens == 8


@pytest.mark.parametrize("kind", [ErrorKind.INVALID_REQUEST, ErrorKind.CONTEXT_TOO_LONG])
async def test_what_the_request_is_to_blame_for_is_not_tried_again(kind: ErrorKind) -> None:
    """The other engine would say the same; the caller gets the engine's own words."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.refusal = MeshError(kind, "no such token", param="logit_bias")
    async with orchestrator(*engines) as running:
        with pytest.raises(MeshError, match="no such token") as caught:
            await generate(running, request())
        assert len(running.service._replicas.ready) == 2
    assert (caught.value.kind, caught.value.param) == (kind, "logit_bias")
    assert sum(len(engine.requests) for engine in engines) == 1


async def test_an_engine_that_was_lost_comes_back() -> None:
    """It is ready again as soon as its health says so, and gets requests."""
    engine = FakeInference()
    async with orchestrator(engine) as running:
        engine.fail_after = 3
        with pytest.raises(MeshError):
            await generate(running, request())
        engine.fail_after = None
        await eventually(lambda: len(running.service._replicas.ready) == 1, "it is back")
        assert text_of(await generate(running, request())) == SCRIPT


async def test_all_engines_are_gone_and_one_returns() -> None:
    """In between the service says that it is unavailable; afterwards it works at once."""
    async with orchestrator(FakeInference()) as running:
        replicas = running.service._replicas
        await running.upstreams[0].server.set_ready(False)
        await eventually(lambda: not replicas.ready, "none is ready")
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await running.upstreams[0].server.set_ready(True)
        await eventually(lambda: len(replicas.ready) == 1, "one is ready")
        assert text_of(await generate(running, request())) == SCRIPT


async def test_work_at_an_engine_is_counted_while_it_lasts() -> None:
    """Prompt and completion tokens; nothing stays behind."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.05
        [replica] = running.service._replicas.ready
        asked = request(sampling={"max_tokens": 40})
        async with open_stream(running.stub.Generate, asked) as responses:
            started = (await anext(responses)).started
            assert replica.outstanding_tokens == started.prompt_tokens + 40
        await eventually(lambda: replica.outstanding_tokens == 0, "nothing is outstanding", 1)
