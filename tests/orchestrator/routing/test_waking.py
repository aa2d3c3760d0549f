"""Models whose engines are scaled to zero: requests wake them, wait, or learn when to return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import REGISTRY

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary, open_stream
from mesh.rpc.server import Servicer
from mesh.v1 import inference_pb2_grpc, orchestrator_pb2
from orchestrator.routing import waking
from orchestrator.routing.waking import Waking, WakingSettings
from orchestrator.settings import OrchestratorSettings
from tests.clock import Clock
from tests.e2e.support.stack import free_ports
from tests.helpers import eventually, serve
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("no_tasks_left")]

TARGET = "engine:50053"


@dataclass
class Engine:
    """The only engine of the model, at `TARGET`."""

    exists: bool = False
    ready: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def is_starting(self, targets: Collection[str]) -> bool:
        assert list(targets) == [TARGET]
        return self.exists

    def change(self, **fields: bool) -> None:
        vars(self).update(fields)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def waking(self, **settings: Any) -> Waking:
        return Waking({"model": [TARGET]}, WakingSettings(**settings), self.is_starting)

    async def wait(self, waking: Waking, name: str = "model") -> None:
        await waking.wait(name, lambda: self.ready, lambda: self.changed)


@pytest.fixture
def engine() -> Engine:
    return Engine()


async def refused(waiting: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await waiting
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert caught.value.retry_after is not None
    return caught.value


async def test_a_bounded_number_of_requests_waits(engine: Engine) -> None:
    """They go on when the engine is ready; one more is refused at once, and tried elsewhere."""
    waking = engine.waking(hold_seconds=60, max_held=2)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(engine.wait(waking)) for _ in range(2)]
        await eventually(lambda: waking.num_held == 2, "both wait")
        error = await refused(engine.wait(waking))
        assert not error.is_final
        assert "asleep" in error.message
        engine.change(exists=True)
        assert "starting" in (await refused(engine.wait(waking))).message
        assert not any(each.done() for each in waiting)
        engine.change(ready=True)
    assert waking.num_held == 0


async def test_a_wait_ends_after_the_hold_time(engine: Engine) -> None:
    """With an error that no other orchestrator is asked about."""
    waking = engine.waking(hold_seconds=0.01)
    assert (await refused(engine.wait(waking))).is_final
    assert waking.num_held == 0
    never = engine.waking(hold_seconds=0)
    assert not (await refused(engine.wait(never))).is_final
    assert not never.holds


async def test_the_wait_begins_again_when_an_engine_starts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capacity that is coming is worth the wait of its own start."""
    clock = Clock()
    monkeypatch.setattr(waking, "time", clock)
    held = engine.waking(hold_seconds=10)
    waiting = asyncio.create_task(engine.wait(held))
    await eventually(lambda: held.num_held == 1, "it waits")
    clock.now += 9
    engine.change(exists=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.now += 9
    engine.change()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.now += 2
    engine.change()
    assert (await refused(waiting)).is_final


async def test_retry_after_is_the_rest_of_the_measured_start(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first the configured time, then the last start's; overdue: a part of the time so far."""
    clock = Clock()
    monkeypatch.setattr(waking, "time", clock)
    monkeypatch.setattr(waking, "SPREAD", 0.0)
    model = engine.waking(expected_seconds=40)
    assert (await refused(engine.wait(model))).retry_after == 40
    clock.now += 30
    assert (await refused(engine.wait(model))).retry_after == 10
    clock.now += 50
    assert (await refused(engine.wait(model))).retry_after == 20
    clock.now += 20
    model.served(["model"])
    model.served([])
    clock.now += 1000
    assert (await refused(engine.wait(model))).retry_after == 100


async def test_a_start_that_never_happened_is_not_measured(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request hours before another one, or before an engine, says nothing about its start."""
    clock = Clock()
    monkeypatch.setattr(waking, "time", clock)
    monkeypatch.setattr(waking, "SPREAD", 0.0)
    model = engine.waking(expected_seconds=40)
    for _ in range(2):
        assert (await refused(engine.wait(model))).retry_after == 40
        clock.now += 10 * 3600
    model.served(["model"])
    assert (await refused(engine.wait(model))).retry_after == 40


async def test_refused_clients_do_not_return_together(engine: Engine) -> None:
    """Their delays differ by up to a half."""
    model = engine.waking(expected_seconds=100)
    delays = [(await refused(engine.wait(model))).retry_after or 0 for _ in range(50)]
    assert min(delays) >= 99
    assert max(delays) <= 150
    assert max(delays) - min(delays) > 20


async def test_an_unknown_model_does_not_wait(engine: Engine) -> None:
    """It is not known by name, so there is nothing to wait for."""
    await engine.wait(engine.waking(hold_seconds=60), "other")


@asynccontextmanager
async def asleep(**settings: Any) -> AsyncIterator[tuple[Orchestrator, int]]:
    """An orchestrator that knows the model "fake" by name; its engine belongs at the port."""
    [port] = free_ports(1)
    host = f"fake=127.0.0.1:{port}"
    async with orchestrator(inference_host=host, wake_hold_seconds=60, **settings) as running:
        yield running, port


async def test_a_request_wakes_its_model() -> None:
    """It is counted when it arrives, waits, and is answered by the engine that it has started."""
    labels = {"model": "fake"}
    before = REGISTRY.get_sample_value("orchestrator_model_requests_total", labels) or 0
    async with asleep(wake_max_held=1) as (running, port):
        assert await woken(running)
        waiting = asyncio.create_task(generate(running, request()))
        replicas = running.service._replicas
        await eventually(lambda: replicas.waking.num_held == 1, "it waits")
        assert REGISTRY.get_sample_value("orchestrator_num_requests_held") == 1
        assert REGISTRY.get_sample_value("orchestrator_num_model_requests", labels) == 1
        now = REGISTRY.get_sample_value("orchestrator_model_requests_total", labels)
        assert now == before + 1
        await refused(generate(running, request(model="fake")))
        with pytest.raises(MeshError) as unknown:
            await generate(running, request(model="other"))
        assert unknown.value.kind is ErrorKind.MODEL_NOT_FOUND
        assert "fake" in unknown.value.message
        engine = FakeInference()
        add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        servicer = Servicer("mesh.v1.InferenceService", add, engine)
        async with serve(servicer, listen=f"127.0.0.1:{port}"):
            assert text_of(await waiting) == SCRIPT
    assert REGISTRY.get_sample_value("orchestrator_num_model_requests", labels) == 0


async def woken(running: Orchestrator) -> bool:
    """Whether the orchestrator becomes ready although no engine is."""
    states: list[bool] = []

    async def set_ready(ready: bool) -> None:
        states.append(ready)

    watching = asyncio.create_task(running.service.watch_ready(set_ready))
    await eventually(lambda: states[-1:] == [True], "ready")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return True


async def test_a_search_wakes_the_model_of_searches() -> None:
    """It is counted before it waits, or nothing would start the engine."""
    labels = {"model": "fake"}
    before = REGISTRY.get_sample_value("orchestrator_model_requests_total", labels) or 0
    async with asleep(search_model="fake") as (running, _):
        query = orchestrator_pb2.SummarizeRequest(query="a", num_results=1)
        async with open_stream(running.stub.SummarizeStream, query) as responses:
            waiting = asyncio.ensure_future(anext(responses))
            waking = running.service._replicas.waking
            await eventually(lambda: waking.num_held == 1, "it waits")
            now = REGISTRY.get_sample_value("orchestrator_model_requests_total", labels)
            assert now == before + 1
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


async def test_a_sleeping_model_is_listed() -> None:
    """Without a context length until it has been served once."""
    async with asleep() as (running, _):
        listed = await call_unary(running.stub.ListModels, orchestrator_pb2.ListModelsRequest())
    assert [(each.name, each.context_length) for each in listed.models] == [("fake", 0)]


async def test_a_client_that_leaves_does_not_wait_any_more() -> None:
    """Its place is free at once."""
    async with asleep(wake_max_held=1) as (running, _):
        waking = running.service._replicas.waking
        waiting = asyncio.create_task(generate(running, request()))
        await eventually(lambda: waking.num_held == 1, "it waits")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: waking.num_held == 0, "its place is free")


def test_engines_may_have_the_name_of_their_model() -> None:
    """Targets without a name are engines of any model."""
    settings = OrchestratorSettings(inference_host="a/b=one:7, two, a/b=vllm+http://three:8")
    assert settings.inference_targets == ("one:7", "two:50053", "vllm+http://three:8")
    assert settings.model_targets == {"a/b": ("one:7", "three:8")}
