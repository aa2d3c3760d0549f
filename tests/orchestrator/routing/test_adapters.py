"""LoRA adapters of several engines: as models, in routing, loaded on all engines or on none."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import pytest

from mesh.context import RequestContext, current_request, use_request
from mesh.errors import ErrorKind, MeshError, invalid
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.generation import ModelInfo
from orchestrator.routing import adapters
from orchestrator.routing.adapters import routed_ids
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS, block_hashes
from orchestrator.routing.replica import Replica
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, Orchestrator, orchestrator


@pytest.fixture
async def running() -> AsyncIterator[Orchestrator]:
    """Two engines of one model that may load adapters; the second has one already."""
    engines = FakeInference(), FakeInference()
    for engine in engines:
        engine.model_sha256, engine.loads_adapters = "ba5e", True
    engines[1].adapters["own"] = "0a"
    async with orchestrator(*engines) as served:
        yield served


async def names(running: Orchestrator) -> list[str]:
    listed = await call_unary(running.stub.ListModels, orchestrator_pb2.ListModelsRequest())
    return [model.name for model in listed.models]


async def generate(running: Orchestrator, model: str) -> str:
    """Generates with a model; returns its name in the first event."""
    request = orchestrator_pb2.GenerateRequest(
        model=model, text="Hi", sampling=common_pb2.SamplingParams(max_tokens=2)
    )
    async with open_stream(running.stub.Generate, request) as responses:
        started = [each.started.model async for each in responses if each.HasField("started")]
    return started[0]


async def load(running: Orchestrator, name: str, path: str = "p", model: str = "") -> int:
    request = orchestrator_pb2.OrchestratorServiceLoadAdapterRequest(
        name=name, path=path, model=model
    )
    return (await call_unary(running.stub.LoadAdapter, request)).num_replicas


async def unload(running: Orchestrator, name: str) -> int:
    request = orchestrator_pb2.OrchestratorServiceUnloadAdapterRequest(name=name)
    return (await call_unary(running.stub.UnloadAdapter, request)).num_replicas


async def test_an_adapter_is_a_model_of_the_engines_that_have_it(running: Orchestrator) -> None:
    """Its requests carry its digest and go to no other engine; "" is the base model."""
    assert await names(running) == ["fake", "own"]
    for _ in range(4):
        assert await generate(running, "own") == "own"
    with_it, without = running.engines[1].requests, running.engines[0].requests
    assert ([each.model_sha256 for each in with_it], without) == (["0a"] * 4, [])
    assert await generate(running, "") == "fake"


async def test_an_adapter_is_loaded_on_all_engines_and_unloaded(running: Orchestrator) -> None:
    """It is a model at once, and not one at once."""
    assert await load(running, "new", model="fake") == 2
    assert await names(running) == ["fake", "new", "own"]
    assert await generate(running, "new") == "new"
    assert await unload(running, "new") == 2
    assert await names(running) == ["fake", "own"]
    assert [set(engine.adapters) for engine in running.engines] == [set(), {"own"}]


async def test_an_adapter_that_one_engine_refuses_is_on_none(running: Orchestrator) -> None:
    """The refusal is the answer."""
    running.engines[1].load_failure = invalid("lora_path", "lora_path is bad")
    with pytest.raises(MeshError, match="lora_path is bad") as refused:
        await load(running, "new")
    assert refused.value.kind is ErrorKind.INVALID_REQUEST
    assert [set(engine.adapters) for engine in running.engines] == [set(), {"own"}]


@pytest.mark.parametrize("name", ["fake", "own"])
async def test_a_name_that_is_served_is_refused(running: Orchestrator, name: str) -> None:
    """Of a model and of an adapter."""
    with pytest.raises(MeshError, match=f"lora_name '{name}' is already served"):
        await load(running, name)


async def test_unknown_adapters_and_engines_that_may_not_load(running: Orchestrator) -> None:
    """NOT_FOUND for the first, UNIMPLEMENTED with the setting's name for the others."""
    with pytest.raises(MeshError, match="no LoRA adapter 'none' is loaded") as refused:
        await unload(running, "none")
    assert refused.value.kind is ErrorKind.MODEL_NOT_FOUND
    async with orchestrator(FakeInference()) as other:
        with pytest.raises(MeshError, match="INFERENCE_ALLOW_RUNTIME_LORA") as disabled:
            await load(other, "new")
        assert disabled.value.kind is ErrorKind.UNIMPLEMENTED


async def test_what_another_orchestrator_loads_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are asked again and again."""
    monkeypatch.setattr(adapters, "FOLLOW_SECONDS", 0.01)
    engine = FakeInference()
    engine.model_sha256, engine.loads_adapters = "ba5e", True
    async with orchestrator(engine) as running:
        engine.adapters["later"] = "1a"
        replicas = running.service._replicas
        await eventually(lambda: "later" in replicas.models, "the adapter is served")


@pytest.fixture
def follows_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are asked all the time."""
    monkeypatch.setattr(adapters, "FOLLOW_SECONDS", 0.01)


@pytest.mark.usefixtures("follows_fast")
async def test_a_replica_that_starts_late_gets_the_adapters_of_the_others(
    running: Orchestrator,
) -> None:
    """Those that were loaded at run time; until then it gets no requests for them."""
    old, late = running.engines
    await load(running, "new", "path")
    del late.adapters["new"]  # as after a restart
    late.load_gate = asyncio.Event()
    late.requests.clear()
    replica = next(
        each
        for each in running.service._replicas.ready
        if any(adapter.name == "own" for adapter in each.adapters.models)
    )
    await eventually(lambda: len(replica.adapters.models) == 1, "the orchestrator knows")
    for _ in range(4):
        await generate(running, "new")
    assert not late.requests
    late.load_gate.set()
    await eventually(lambda: late.adapters.get("new") == old.adapters["new"], "it is copied")
    await eventually(lambda: len(replica.adapters.models) == 2, "it gets requests")
    assert set(old.adapters) == {"new"}, "an adapter of the settings is not copied"


@pytest.mark.usefixtures("follows_fast")
async def test_an_unloaded_adapter_is_not_copied_back(running: Orchestrator) -> None:
    """Neither by an engine that has unloaded it, nor if the others lose it meanwhile."""
    old, late = running.engines
    await load(running, "new")
    await unload(running, "new")
    old.adapters["new"], old.adapter_paths["new"] = "0b", "p"  # its unloading failed
    replicas = running.service._replicas
    await eventually(lambda: "new" in replicas.models, "one engine has it")
    await eventually(lambda: bool(replicas.adapters._refused), "the copy is refused")
    assert "new" not in late.adapters
    late.unloaded.clear()
    replicas.adapters._refused.clear()
    late.load_gate = asyncio.Event()
    await eventually(lambda: bool(replicas.adapters._copies), "a copy has begun")
    del old.adapters["new"]
    late.load_gate.set()
    await eventually(lambda: not replicas.adapters._copies, "it has ended")
    assert "new" not in late.adapters


@pytest.mark.usefixtures("follows_fast")
async def test_a_load_of_another_orchestrator_is_not_copied(
    running: Orchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    """While it runs, the engine refuses copies: there is nothing to do, and nothing to report."""
    first, slow = running.engines
    slow.load_failure = invalid("lora_name", "lora_name 'new' is already served")
    with caplog.at_level(logging.DEBUG, logger="orchestrator.routing.adapters"):
        first.adapters["new"], first.adapter_paths["new"] = "0b", "p"
        await eventually(
            lambda: caplog.messages.count("adapter not copied") > 1, "copies are refused"
        )
    levels = {each.levelno for each in caplog.records if each.message == "adapter not copied"}
    assert levels == {logging.DEBUG}
    assert not running.service._replicas.adapters._refused


@pytest.mark.parametrize("refused", [False, True])
async def test_a_client_that_leaves_does_not_end_a_load(
    running: Orchestrator, refused: bool
) -> None:
    """The adapter is on all engines then, or on none."""
    first, second = running.engines
    second.load_gate = asyncio.Event()
    if refused:
        second.load_failure = invalid("lora_path", "lora_path is bad")
    waiting = asyncio.create_task(load(running, "new"))
    await eventually(lambda: "new" in first.adapters, "one engine has it")
    with pytest.raises(MeshError, match="is being loaded or unloaded") as busy:
        await unload(running, "new")
    assert busy.value.kind is ErrorKind.OVERLOADED
    waiting.cancel()
    await asyncio.wait([waiting])
    second.load_gate.set()
    manager = running.service._replicas.adapters
    await eventually(lambda: not manager._busy, "the change has ended")
    assert [("new" in each.adapters) for each in running.engines] == [not refused] * 2


async def test_a_load_is_undone_after_its_deadline(
    running: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calls that unload the adapter are not limited by it."""
    remaining: list[float | None] = []
    unload_adapter = Replica.unload_adapter

    async def unload(replica: Replica, name: str) -> None:
        context = current_request()
        assert context is not None
        remaining.append(context.remaining())
        await unload_adapter(replica, name)

    monkeypatch.setattr(Replica, "unload_adapter", unload)
    first, second = running.engines
    second.load_gate = asyncio.Event()
    second.load_failure = invalid("lora_path", "lora_path is bad")
    replicas = running.service._replicas
    request = RequestContext(request_id="late", deadline=time.monotonic() + 60)
    with use_request(request):
        loading = asyncio.create_task(replicas.adapters.load(replicas.models["fake"], "new", "p"))
    await eventually(lambda: "new" in first.adapters, "one engine has it")
    request.deadline = time.monotonic()
    second.load_gate.set()
    with pytest.raises(MeshError, match="lora_path is bad"):
        await loading
    assert remaining == [None]
    assert "new" not in first.adapters


async def test_an_engine_that_may_have_loaded_it_is_asked_to_unload_it(
    running: Orchestrator,
) -> None:
    """The response was lost: its adapter must not be copied to the others later."""
    first, second = running.engines
    second.load_failure = MeshError(ErrorKind.UNAVAILABLE, "connection lost")
    second.adapters["new"] = "0b"
    with pytest.raises(MeshError, match="connection lost"):
        await load(running, "new")
    assert "new" not in {**first.adapters, **second.adapters}


async def test_a_stream_continues_when_its_adapter_is_unloaded(running: Orchestrator) -> None:
    """Further requests are refused as for an unknown model."""
    await load(running, "new")
    for engine in running.engines:
        engine.delay = 0.02
    request = orchestrator_pb2.GenerateRequest(
        model="new", text="Hi", sampling=common_pb2.SamplingParams(max_tokens=8)
    )
    async with open_stream(running.stub.Generate, request) as responses:
        events = aiter(responses)
        await anext(events)
        await unload(running, "new")
        last = [each async for each in events][-1]
    assert last.finish.usage.completion_tokens == 8
    with pytest.raises(MeshError) as unknown:
        await generate(running, "new")
    assert unknown.value.kind is ErrorKind.MODEL_NOT_FOUND


def test_routing_keeps_adapters_apart() -> None:
    """No block of an adapter's prompt is that of another model, whatever the prompt."""
    base, prompt = ModelInfo("m", 100, model_sha256="ab"), list(range(3 * BLOCK_TOKENS))
    models = [base._replace(name=n, base="m", model_sha256=n * 8) for n in "ab"]
    assert routed_ids(base, prompt) is prompt
    hashes = [set(block_hashes(list(routed_ids(each, prompt)))) for each in (base, *models)]
    assert not hashes[0] & hashes[1]
    assert not hashes[1] & hashes[2]
