"""Streams that continue on another engine."""

from __future__ import annotations

import asyncio
import re

import pytest

from mesh.errors import INTERNAL_MESSAGE, ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.generation import ModelInfo
from orchestrator.routing import first_tokens
from orchestrator.routing.backends.weir import WeirBackend
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, kinds_of, request, text_of
from tests.orchestrator.tokenizers_made import byte_level


def served(running: Orchestrator) -> ModelInfo:
    """The only model that is served."""
    [model] = running.service._replicas.models.values()
    return model


def in_order(running: Orchestrator, prompt: str = "Hello") -> list[FakeInference]:
    """The engines; first the one that receives the prompt."""
    ids = byte_level().encode(prompt, add_special_tokens=False).ids
    address = running.service._replicas.pick(served(running), ids).address
    engines = zip(running.upstreams, running.engines, strict=True)
    return [each for _, each in sorted(engines, key=lambda pair: pair[0].address != address)]


@pytest.mark.parametrize("fail_after", [0, 1, 7, 20])
async def test_a_lost_engine_does_not_change_the_text(fail_after: int) -> None:
    """The other engine continues after the delivered tokens."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = fail_after
    reported: list[int] = []
    async with orchestrator(*engines) as running:
        # The engine that is chosen first fails; the one that takes over does not.
        async def lose_one() -> str:
            events = await generate(running, request())
            kinds = kinds_of(events)
            assert kinds.count("finish") == kinds.count("started") == 1
            assert events[-1].finish.usage.completion_tokens == len(engines[0].ids)
            reported.append(events[-1].finish.num_resumptions)
            return text_of(events)

        _, survivor = in_order(running)
        survivor.fail_after = None
        texts = [await lose_one()]
        # Prompts prefer different replicas: try until both have been asked first.
        for number in range(8):
            await eventually(lambda: len(running.service._replicas.ready) == 2, "both ready")
            events = await generate(running, request(f"Hello {number}"))
            texts.append(text_of(events))
            reported.append(events[-1].finish.num_resumptions)
    assert set(texts) == {SCRIPT}
    resumed = [r.num_resumed_tokens for r in survivor.requests if r.num_resumed_tokens]
    assert resumed == [fail_after] * len(resumed)
    assert fail_after == 0 or resumed
    assert sum(reported) == len(resumed)


async def test_a_request_that_loses_two_engines_is_given_up() -> None:
    """It may be the cause."""
    engines = [FakeInference(), FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = 3
    async with orchestrator(*engines) as running:
        with pytest.raises(MeshError, match="given up after 2") as caught:
            await generate(running, request())
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert sum(len(engine.requests) for engine in engines) == 2


async def test_the_only_engine_is_tried_twice() -> None:
    """Perhaps only the connection was lost."""
    engine = FakeInference()
    engine.fail_after, engine.num_failing = 5, 1
    async with orchestrator(engine) as running:
        assert text_of(await generate(running, request())) == SCRIPT
    assert [asked.num_resumed_tokens for asked in engine.requests] == [0, 5]


async def test_a_full_engine_sends_the_request_to_the_other() -> None:
    """The client receives OVERLOADED only if all engines are full."""
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
    """The error comes at once, with a retry delay."""
    async with orchestrator() as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after is not None


async def test_a_draining_engine_gets_no_requests() -> None:
    """Its health changes before a request fails there."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        await running.upstreams[0].server.set_ready(False)
        await eventually(lambda: len(running.service._replicas.ready) == 1, "one is left")
        for number in range(6):
            await generate(running, request(f"Hello {number}"))
        assert engines[0].requests == []
        await running.upstreams[0].server.set_ready(True)
        await eventually(lambda: len(running.service._replicas.ready) == 2, "it is back")


async def test_losses_before_acceptance_do_not_count() -> None:
    """Any number of draining engines may refuse; the request goes to one that accepts it."""
    engines = [FakeInference(), FakeInference(), FakeInference(), FakeInference()]
    for engine in engines[:3]:
        engine.refusal = MeshError(ErrorKind.UNAVAILABLE, "draining")
    async with orchestrator(*engines) as running:
        events = await generate(running, request())
    assert text_of(events) == SCRIPT
    assert [event.HasField("started") for event in events].count(True) == 1
    assert engines[3].requests[0].num_resumed_tokens == 0


async def test_the_second_engine_receives_the_same_sampling() -> None:
    """With the prompt and the delivered tokens; max_tokens counts from the start."""
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
    """Only the finish is missing, and it follows from the tokens."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        first.no_finish = True
        events = await generate(running, request(sampling={"max_tokens": 6}))
    assert second.requests == []
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_LENGTH
    assert events[-1].finish.usage.completion_tokens == 6
    assert events[-1].finish.usage.prompt_tokens == events[0].started.prompt_tokens


async def test_a_stop_string_may_span_two_engines() -> None:
    """Text held back from the lost engine is continued by the other."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        cut = SCRIPT.index("jumps") + 3
        first.fail_after = len(byte_level().encode(SCRIPT[:cut], add_special_tokens=False).ids)
        events = await generate(running, request(stop=["jumps over"]))
        await eventually(lambda: second.num_open == 0, "the engine is free", 1)
    assert text_of(events) == SCRIPT[: SCRIPT.index("jumps")]
    assert events[-1].finish.reason == common_pb2.FINISH_REASON_STOP


async def test_a_summary_survives_the_loss_of_its_engine() -> None:
    """A search fails over like a generation."""
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
async def test_errors_of_the_request_are_not_retried(kind: ErrorKind) -> None:
    """The client receives the engine's message."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.refusal = MeshError(kind, "no such token", param="logit_bias")
    async with orchestrator(*engines) as running:
        with pytest.raises(MeshError, match="no such token") as caught:
            await generate(running, request())
        assert len(running.service._replicas.ready) == 2
    assert (caught.value.kind, caught.value.param) == (kind, "logit_bias")
    assert sum(len(engine.requests) for engine in engines) == 1


async def test_a_lost_engine_becomes_ready_again() -> None:
    """As soon as its health is SERVING it gets requests."""
    engine = FakeInference()
    async with orchestrator(engine) as running:
        engine.fail_after = 3
        with pytest.raises(MeshError):
            await generate(running, request())
        engine.fail_after = None
        await eventually(lambda: len(running.service._replicas.ready) == 1, "it is back")
        assert text_of(await generate(running, request())) == SCRIPT


async def test_requests_succeed_once_an_engine_returns() -> None:
    """While there is none, requests fail with UNAVAILABLE."""
    async with orchestrator(FakeInference(), hold_seconds=0.1) as running:
        replicas = running.service._replicas
        await running.upstreams[0].server.set_ready(False)
        await eventually(lambda: not replicas.ready, "none is ready")
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        await running.upstreams[0].server.set_ready(True)
        await eventually(lambda: len(replicas.ready) == 1, "one is ready")
        assert text_of(await generate(running, request())) == SCRIPT


async def test_outstanding_tokens_are_counted_during_a_stream() -> None:
    """Prompt and completion tokens, until the stream ends."""
    async with orchestrator(FakeInference()) as running:
        running.engine.delay = 0.05
        [replica] = running.service._replicas.ready
        asked = request(sampling={"max_tokens": 40})
        async with open_stream(running.stub.Generate, asked) as responses:
            started = (await anext(responses)).started
            assert replica.outstanding_tokens == started.prompt_tokens + 40
        await eventually(lambda: replica.outstanding_tokens == 0, "nothing is outstanding", 1)


NOT_FINITE = MeshError(ErrorKind.INTERNAL, "the model gave no finite logits for this sequence")


async def test_a_request_that_fails_at_two_engines_alike_is_refused() -> None:
    """With 400, so that clients do not retry. No engine is blamed or loses a request."""
    engines = [FakeInference(), FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after, engine.failure = 3, NOT_FINITE
    async with orchestrator(*engines) as running:
        replicas = running.service._replicas
        for number in range(12):
            with pytest.raises(MeshError, match="fails at every engine: the model gave") as caught:
                await generate(running, request(f"Hello {number}"))
            assert caught.value.kind is ErrorKind.INVALID_REQUEST
            assert caught.value.retry_after is None
            assert len(replicas.ready) == 3, "a replica was marked lost"
        assert not any(replica.circuit.is_open for replica in replicas.ready)
        assert sum(len(engine.requests) for engine in engines) == 24
        for engine in engines:
            engine.fail_after = None
        assert text_of(await generate(running, request())) == SCRIPT


async def test_a_failure_that_only_one_engine_has_is_that_engine_s() -> None:
    """The other one finishes the request; repeated, this opens the circuit of the first."""
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        first, second = in_order(running)
        first.fail_after, first.failure = 3, NOT_FINITE
        for _ in range(4):
            assert text_of(await generate(running, request())) == SCRIPT
        replicas = running.service._replicas
        assert len(replicas.ready) == 2
        assert [replica.circuit.is_open for replica in replicas.ready].count(True) == 1
    assert len(first.requests) == 3
    assert len(second.requests) == 4


@pytest.mark.parametrize("message", [NOT_FINITE.message, INTERNAL_MESSAGE])
async def test_the_only_engine_s_own_failure_is_passed_on(message: str) -> None:
    """Not replaced by "no engine is ready", which clients retry; the engine stays ready."""
    engine = FakeInference()
    engine.fail_after, engine.failure = 3, MeshError(ErrorKind.INTERNAL, message)
    async with orchestrator(engine) as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert len(running.service._replicas.ready) == 1
    assert (caught.value.kind, caught.value.message) == (ErrorKind.INTERNAL, message)
    assert len(engine.requests) == 1


async def test_an_unexpected_error_stays_internal() -> None:
    """A bug at both engines may concern every request: it is not the client's mistake."""
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = 3
        engine.failure = MeshError(ErrorKind.INTERNAL, INTERNAL_MESSAGE)
    async with orchestrator(*engines) as running:
        with pytest.raises(MeshError) as caught:
            await generate(running, request())
        assert len(running.service._replicas.ready) == 2
    assert caught.value.kind is ErrorKind.INTERNAL


async def test_compiling_a_constraint_is_not_a_late_first_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that compiles a client's slow schema is still chosen for others."""
    monkeypatch.setattr(first_tokens, "MIN_OVERDUE_SECONDS", 0.02)
    engines = [FakeInference(), FakeInference()]
    async with orchestrator(*engines) as running:
        compiling, other = in_order(running)
        prompt = next(
            text
            for text in (f"{number} is the start" for number in range(100))
            if in_order(running, text)[0] is other
        )
        compiling.accept_delay = 60.0
        asked = request(sampling={"max_tokens": 1, "constraint": {"regex": "a*"}})
        waiting = asyncio.create_task(generate(running, asked))
        await eventually(lambda: compiling.num_open == 1, "the engine has the request")
        compiling.accept_delay = 0.0
        await generate(running, request(prompt, sampling={"max_tokens": 1}))
        assert len(other.requests) == 1
        replicas = running.service._replicas.ready
        await asyncio.sleep(0.05)
        for replica in replicas:
            assert replica.first_tokens.find_overdue(r.first_tokens for r in replicas) == (False, 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_form_continues_only_where_its_beginning_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM would begin the form again after the resumed tokens, so such a request fails there."""
    monkeypatch.setattr(WeirBackend, "resumes_constraints", False)
    engines = [FakeInference(), FakeInference()]
    for engine in engines:
        engine.fail_after = 3
        engine.num_failing = 1
    async with orchestrator(*engines) as running:
        asked = request(sampling={"constraint": {"regex": ".*"}})
        with pytest.raises(MeshError, match="no engine is ready") as caught:
            await generate(running, asked)
        assert caught.value.kind is ErrorKind.UNAVAILABLE
        assert sum(len(engine.requests) for engine in engines) == 1
        await eventually(lambda: len(running.service._replicas.ready) == 2, "both ready")
        [free] = [engine for engine in engines if not engine.requests]
        free.num_failing = 0
        assert text_of(await generate(running, request("Hello 3"))) == SCRIPT
