"""Models with separate tokenizers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import pytest

from mesh.errors import ErrorKind, MeshError
from mesh.rpc.channel import call_unary
from mesh.rpc.server import Servicer
from mesh.rpc.tls import NO_TLS
from mesh.v1 import orchestrator_pb2, orchestrator_pb2_grpc, tokenizer_pb2_grpc
from orchestrator.application import application
from orchestrator.clients.tokenizers import FOR_ALL, open_tokenizers
from orchestrator.readiness import Readiness
from orchestrator.service import OrchestratorService
from orchestrator.settings import OrchestratorSettings
from tests.helpers import Served, eventually, serve
from tests.orchestrator.fakes import FakeInference, FakeTokenizer, orchestrator

pytestmark = pytest.mark.timeout(30)


class Running(NamedTuple):
    """An orchestrator with two tokenizers."""

    stub: orchestrator_pb2_grpc.OrchestratorServiceAsyncStub
    service: OrchestratorService
    tokenizers: list[FakeTokenizer]
    served: list[Served]


@asynccontextmanager
async def two_models(hosts: str) -> AsyncIterator[Running]:
    """Models `ant` and `bee`; `hosts` is TOKENIZER_HOST, with {0} and {1} for the tokenizers."""
    tokenizers = [FakeTokenizer(), FakeTokenizer()]
    one, two = FakeInference(), FakeInference()
    one.name, two.name = "ant", "bee"
    async with AsyncExitStack() as stack:
        register = tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server
        served = [
            await stack.enter_async_context(
                serve(Servicer("mesh.v1.TokenizerService", register, each))
            )
            for each in tokenizers
        ]
        engines = await stack.enter_async_context(orchestrator(one, two))
        settings = OrchestratorSettings(
            tokenizer_host=hosts.format(*(each.address for each in served)),
            inference_host=",".join(each.address for each in engines.upstreams),
        )
        service = await stack.enter_async_context(application(settings))
        front = await stack.enter_async_context(serve(*service.servicers))
        await eventually(lambda: len(service._replicas.ready) == 2, "both engines are ready")
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(front.channel)
        yield Running(stub, service, tokenizers, served)


async def summarize(running: Running, model: str) -> None:
    asked = orchestrator_pb2.SummarizeRequest(query="tracing", model=model, max_tokens=4)
    await call_unary(running.stub.Summarize, asked, timeout=10)


async def ask(running: Running, model: str, text: str) -> None:
    asked = orchestrator_pb2.GenerateRequest(text=text, model=model)
    async for _ in running.stub.Generate(asked, timeout=10):
        pass


async def test_each_model_uses_its_own_tokenizer() -> None:
    """For generations and for searches."""
    async with two_models("ant={0},bee={1}") as running:
        await ask(running, "ant", "for the ant")
        await ask(running, "bee", "for the bee")
        await summarize(running, "bee")
        first, second = (tokenizer.prompts for tokenizer in running.tokenizers)
    assert first == ["for the ant"]
    assert second[0] == "for the bee"
    assert "tracing" in second[1]


async def test_an_address_without_a_model_is_for_all_others() -> None:
    """It serves every model that is not named."""
    async with two_models("{0},bee={1}") as running:
        await ask(running, "ant", "for the ant")
        await ask(running, "bee", "for the bee")
        assert [tokenizer.prompts for tokenizer in running.tokenizers] == [
            ["for the ant"],
            ["for the bee"],
        ]


async def test_models_may_share_a_tokenizer() -> None:
    """It is watched and downloaded once."""
    async with two_models("ant={0},bee={0}") as running:
        await ask(running, "ant", "for the ant")
        await ask(running, "bee", "for the bee")
        await summarize(running, "bee")
        assert len(running.tokenizers[0].prompts) == 2  # a short text needs no call
        assert running.tokenizers[0].num_downloads == 1
        assert len(running.service._pipeline._tokenizers.upstreams) == 1


async def test_a_model_without_a_tokenizer_is_unavailable() -> None:
    """The message names the model and the variable; other models still work."""
    async with two_models("ant={0}") as running:
        asked = orchestrator_pb2.SummarizeRequest(query="tracing", model="bee", max_tokens=4)
        with pytest.raises(MeshError, match="'bee'; see TOKENIZER_HOST") as refusal:
            await call_unary(running.stub.Summarize, asked, timeout=10)
        assert refusal.value.kind is ErrorKind.UNAVAILABLE
        await ask(running, "ant", "for the ant")


async def test_ready_while_one_model_is_usable() -> None:
    """A lost tokenizer affects only its own model."""
    async with two_models("ant={0},bee={1}") as running:
        states: list[bool] = []

        async def set_ready(ready: bool) -> None:
            states.append(ready)

        watching = asyncio.create_task(running.service.watch_ready(set_ready))
        try:
            await eventually(lambda: states[-1:] == [True], "ready")
            readiness = running.service._readiness
            await running.served[0].server.set_ready(False)
            await eventually(lambda: len(readiness._serving) == 1, "one tokenizer is lost")
            assert states[-1]
            await running.served[1].server.set_ready(False)
            await eventually(lambda: not states[-1], "not ready")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def test_a_lost_tokenizer_replica_does_not_end_readiness() -> None:
    """The orchestrator is ready again with another replica of the same target."""
    async with two_models("{0}") as running:
        targets = {FOR_ALL: ",".join(each.address for each in running.served)}
        async with open_tokenizers(targets, NO_TLS) as tokenizers:
            readiness = Readiness(tokenizers, running.service._replicas)

            async def set_ready(ready: bool) -> None:
                pass

            watching = asyncio.create_task(readiness.watch(set_ready))
            try:
                await eventually(lambda: readiness.ready, "ready")
                for each in running.served:
                    await each.server.set_ready(False)
                    # Long enough for the health update to arrive from either replica.
                    await asyncio.sleep(0.3)
                    await eventually(lambda: readiness.ready, "ready with the other")
                    await each.server.set_ready(True)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
