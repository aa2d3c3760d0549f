"""LoRA adapters of several engines: as models, in routing, loaded on all engines or on none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.errors import ErrorKind, MeshError, invalid
from mesh.rpc.channel import call_unary, open_stream
from mesh.v1 import common_pb2, orchestrator_pb2
from orchestrator.generation import ModelInfo
from orchestrator.routing import adapters
from orchestrator.routing.adapters import routed_ids
from orchestrator.routing.policies.prefix_index import BLOCK_TOKENS, block_hashes
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


def test_routing_keeps_adapters_apart() -> None:
    """No block of an adapter's prompt is that of another model, whatever the prompt."""
    base, prompt = ModelInfo("m", 100, model_sha256="ab"), list(range(3 * BLOCK_TOKENS))
    models = [base._replace(name=n, base="m", model_sha256=n * 8) for n in "ab"]
    assert routed_ids(base, prompt) is prompt
    hashes = [set(block_hashes(list(routed_ids(each, prompt)))) for each in (base, *models)]
    assert not hashes[0] & hashes[1]
    assert not hashes[1] & hashes[2]
