"""More requests than the limit, and several models."""

from __future__ import annotations

import asyncio
import time

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary
from mesh.v1 import orchestrator_pb2
from tests.orchestrator.fakes import SCRIPT, FakeInference, orchestrator
from tests.orchestrator.test_embedding import embed, texts
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(20)


async def test_requests_up_to_the_limit_are_served_and_the_rest_refused_at_once() -> None:
    """No request waits or is truncated, and afterwards all permits are free."""
    async with orchestrator(FakeInference(), max_concurrent_requests=3) as running:
        running.engine.delay = 0.05

        async def ask(number: int) -> str | MeshError:
            try:
                return text_of(await generate(running, request(f"Hello {number}")))
            except MeshError as error:
                refused_at.append(time.monotonic())
                return error

        for _ in range(2):
            refused_at: list[float] = []
            begun = time.monotonic()
            outcomes = await asyncio.gather(*(ask(number) for number in range(10)))
            took = time.monotonic() - begun
            assert outcomes.count(SCRIPT) == 3
            errors = [each for each in outcomes if isinstance(each, MeshError)]
            assert {error.kind for error in errors} == {ErrorKind.OVERLOADED}
            assert all(0 < (error.retry_after or 0) <= 30 for error in errors)
            assert "the limit is 3" in errors[0].message
            assert max(refused_at) - begun < took / 2
        assert len(running.engine.requests) == 6


async def test_a_refused_request_holds_no_permit() -> None:
    """Invalid requests, unknown models and prompts that are too long release their permit."""
    async with orchestrator(FakeInference(), max_concurrent_requests=1) as running:
        for bad in (
            request(model="nobody"),
            request(sampling={"max_tokens": 5000}),
            request(stop=[""]),
            orchestrator_pb2.GenerateRequest(),
        ):
            for _ in range(3):
                with pytest.raises(MeshError) as caught:
                    await generate(running, bad)
                assert caught.value.kind is not ErrorKind.OVERLOADED
        assert text_of(await generate(running, request())) == SCRIPT


async def test_a_request_goes_to_the_model_it_names() -> None:
    """ListModels is sorted by name, and a model's creation time does not change."""
    one, two = FakeInference("I am one."), FakeInference("I am two.", context_length=99)
    one.name, two.name = "zebra", "ant"
    async with orchestrator(one, two) as running:
        asked = orchestrator_pb2.ListModelsRequest()
        models = (await call_unary(running.stub.ListModels, asked)).models
        again = (await call_unary(running.stub.ListModels, asked)).models
        for name, text in [("zebra", "I am one."), ("ant", "I am two.")]:
            events = await generate(running, request(model=name))
            assert text_of(events) == text
            assert events[0].started.model == name
    assert [(each.name, each.context_length) for each in models] == [("ant", 99), ("zebra", 2048)]
    assert list(again) == list(models)
    assert all(abs(each.created_unix_seconds - time.time()) < 60 for each in models)


async def test_searches_use_the_model_that_is_set_for_them() -> None:
    """Unless they name another one; other requests still must name one."""
    one, two = FakeInference("A fox."), FakeInference("A dog.")
    one.name, two.name = "zebra", "ant"
    async with orchestrator(one, two, search_model="zebra") as running:
        for name, answer in (("", "A fox."), ("ant", "A dog.")):
            search = orchestrator_pb2.SummarizeRequest(query="fox", model=name)
            assert (await call_unary(running.stub.Summarize, search)).summary == answer
        with pytest.raises(MeshError, match="model must be one of ant, zebra, given none"):
            await generate(running, request())


async def test_a_search_model_without_an_engine_is_unavailable() -> None:
    """The client cannot change the setting, and may try again."""
    async with orchestrator(FakeInference(), search_model="zebra") as running:
        search = orchestrator_pb2.SummarizeRequest(query="fox")
        with pytest.raises(MeshError, match="no engine is ready for zebra") as caught:
            await call_unary(running.stub.Summarize, search)
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_with_several_models_a_request_must_name_one() -> None:
    """The error lists their names, for generations, searches and embeddings."""
    one, two = FakeInference(), FakeInference()
    one.name, two.name = "zebra", "ant"
    async with orchestrator(one, two) as running:
        requests = [
            generate(running, request()),
            call_unary(running.stub.Summarize, orchestrator_pb2.SummarizeRequest(query="fox")),
            embed(running, texts("fox")),
        ]
        for each in requests:
            with pytest.raises(MeshError, match="model must be one of ant, zebra, given none") as e:
                await each
            assert e.value.kind is ErrorKind.INVALID_REQUEST
            assert e.value.param == "model"
        assert one.requests == two.requests == []
