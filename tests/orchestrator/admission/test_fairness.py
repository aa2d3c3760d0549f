"""Requests and tokens, shared fairly between keys."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.context import RequestContext, use_request
from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import open_stream
from orchestrator.admission.admission import Admission
from orchestrator.admission.fair_share import FairShare
from tests.helpers import eventually
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(30)


def test_without_keys_the_whole_limit_is_usable() -> None:
    """There is no reserve if no keys are in use."""
    share = FairShare(8)
    assert [share.take("") for _ in range(9)] == [True] * 8 + [False]


def test_one_key_cannot_use_the_reserve() -> None:
    """A single key gets all but the reserve, so another key is admitted at once."""
    share = FairShare(16)
    assert sum(share.take("flood") for _ in range(100)) == 14
    assert share.take("late")
    assert share.take("late")
    assert not share.take("late")
    assert share.num_held == 16


def test_two_keys_approach_equal_shares() -> None:
    """As requests end, the first key is not admitted beyond its fair share."""
    share, order = FairShare(16), random.Random(1)
    for _ in range(100):
        share.take("flood")
    for _ in range(400):
        for _ in range(5):
            share.take("flood")
        share.take("late")
        held = [key for key in ("flood", "late") for _ in range(share.held_by(key))]
        share.give(order.choice(held))
    assert abs(share.held_by("flood") - share.held_by("late")) <= 3
    assert share.num_held >= 13


def test_demand_of_another_key_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that was refused long ago no longer limits the others."""
    now = 100.0
    monkeypatch.setattr("orchestrator.admission.fair_share.time.monotonic", lambda: now)
    share = FairShare(16)
    while share.take("flood"):
        pass
    while share.take("late"):
        pass
    for _ in range(6):
        share.give("flood")
    assert not share.take("flood")  # late is hungry and has less than half
    now += 3
    assert share.take("flood")


def test_an_idle_limiter_grants_more_than_the_limit() -> None:
    """Otherwise a prompt larger than the limit could never run."""
    share = FairShare(100)
    assert share.take("a", 500)
    assert not share.take("b", 1)
    share.give("a", 500)
    assert share.take("b", 1)
    assert not share.take("a", 500)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=200))
def test_the_counts_are_always_consistent(steps: list[tuple[str, int, bool]]) -> None:
    """After any steps the limit holds, and the sum over keys is the total."""
    share = FairShare(20)
    taken: list[tuple[str, int]] = []
    for key, amount, gives in steps:
        if gives and taken:
            share.give(*taken.pop(0))
        elif share.take(key, amount):
            taken.append((key, amount))
        assert share.num_held == sum(amount for _, amount in taken) <= 20
        assert all(share.held_by(k) == sum(a for n, a in taken if n == k) for k in "abc")


def test_tokens_are_limited_like_requests() -> None:
    """They are always released."""
    admission = Admission(10, max_tokens=100)
    with admission.permit() as one, admission.permit() as two:
        one.reserve(60)
        with pytest.raises(MeshError, match="60 tokens are in progress, the limit is 100"):
            two.reserve(50)
        two.reserve(40)
        assert admission.backlog.num_ahead == 100
        one.progress(10)
        assert admission.backlog.num_ahead == 90
    assert admission.tokens.num_held == admission.backlog.num_ahead == admission.num_admitted == 0


async def as_key(key: str, running: Orchestrator, number: int) -> str:
    """One request of a key; "" if it was refused."""
    with use_request(RequestContext(request_id=f"{key}-{number}", key_name=key)):
        try:
            return text_of(await generate(running, request(f"Hello {number}")))
        except MeshError as error:
            assert error.kind is ErrorKind.OVERLOADED  # noqa: PT017
            return ""


async def test_a_flood_from_one_key_does_not_starve_another() -> None:
    """While one key sends many requests, each single request of another key is served."""
    async with orchestrator(FakeInference(), max_concurrent_requests=8) as running:
        running.engine.delay = 0.005
        flooding = True
        served = {"flood": 0, "refused": 0}

        async def flood() -> None:
            while flooding:
                text = await as_key("flood", running, 0)
                served["flood" if text else "refused"] += 1
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(24):
                tasks.create_task(flood())
            await eventually(lambda: served["refused"] > 24, "the flood is refused")
            texts = [await as_key("quiet", running, number) for number in range(6)]
            flooding = False
    assert texts == [SCRIPT] * 6
    assert served["flood"] > 0


async def test_too_many_tokens_are_refused_with_a_delay() -> None:
    """The limit is on the sum of prompt and completion tokens."""
    async with orchestrator(FakeInference(), max_outstanding_tokens=100) as running:
        running.engine.delay = 0.05
        asked = request(sampling={"max_tokens": 80})
        async with open_stream(running.stub.Generate, asked) as responses:
            await anext(responses)
            with pytest.raises(MeshError, match="tokens are in progress") as caught:
                await generate(running, asked)
            assert caught.value.kind is ErrorKind.OVERLOADED
            assert caught.value.retry_after
            small = await generate(running, request(sampling={"max_tokens": 2}))
            assert small[-1].finish.usage.completion_tokens == 2
        pipeline = running.service._pipeline
        await eventually(lambda: pipeline._admission.tokens.num_held == 0, "all is given back")
