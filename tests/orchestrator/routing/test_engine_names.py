"""Discovery of engines by DNS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from mesh.process.lifecycle import StartupError
from mesh.rpc.server import Servicer
from mesh.v1 import inference_pb2_grpc
from orchestrator.application import application
from orchestrator.routing.backends.target import EngineTarget
from orchestrator.settings import OrchestratorSettings
from tests.helpers import eventually, serve
from tests.orchestrator.fakes import SCRIPT, FakeInference, Orchestrator, orchestrator
from tests.orchestrator.test_service import generate, request, text_of

pytestmark = pytest.mark.timeout(20)


class Names:
    """A resolver that returns `hosts` for the name `engines`, and fails if there are none."""

    def __init__(self, running: Orchestrator, *other_names: str) -> None:
        """Makes `engines` and `other_names` the names of the orchestrator's engines."""
        self.hosts: list[str] = ["127.0.0.1"]
        self.num_failed = 0
        self.port = running.upstreams[0].address.rpartition(":")[2]
        replicas = running.service._replicas
        targets = [f"{name}:{self.port}" for name in ("engines", *other_names)]
        replicas._targets = {target: EngineTarget(target) for target in targets}
        replicas._discovery._targets = targets
        replicas._discovery._resolve = self._resolve

    def address(self, host: str) -> str:
        return f"{host}:{self.port}"

    async def _resolve(self, target: str) -> set[str]:
        if not target.startswith("engines:") or not self.hosts:
            self.num_failed += 1
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return set(map(self.address, self.hosts))


async def test_engines_follow_the_resolved_addresses() -> None:
    """A new address is used; a removed one gets no new requests, but finishes its streams."""
    added = FakeInference()
    register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    servicer = Servicer("mesh.v1.InferenceService", register, added)
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.02) as running:
        replicas, names = running.service._replicas, Names(running)
        old, new = names.address("127.0.0.1"), names.address("127.0.0.2")
        running.engine.delay = 0.01
        generating = asyncio.create_task(generate(running, request()))
        await eventually(lambda: running.engine.num_open == 1, "a stream runs")
        names.hosts = ["127.0.0.2"]
        await eventually(lambda: set(replicas._members) == {old, new}, "the change is known")
        assert [each.address for each in replicas.ready] == [old], "the only one that serves"
        async with serve(servicer, listen=new):
            await eventually(lambda: [each.address for each in replicas.ready] == [new], "new")
            assert text_of(await generate(running, request())) == SCRIPT
            assert len(added.requests) == 1
            assert (await generating)[-1].HasField("finish")
            await eventually(lambda: list(replicas._members) == [new], "the old one is gone")


async def test_a_failed_lookup_changes_nothing() -> None:
    """The previous addresses remain in use."""
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.02) as running:
        names = Names(running)
        names.hosts = []
        await eventually(lambda: names.num_failed > 2, "lookups fail")
        assert len(running.service._replicas.ready) == 1
        await generate(running, request())


async def test_an_empty_name_keeps_no_foreign_addresses() -> None:
    """A model scaled to zero does not keep engines that another name has taken over."""
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.02) as running:
        replicas, names = running.service._replicas, Names(running, "unknown.invalid")
        names.hosts = ["127.0.0.1", "127.0.0.2"]
        await eventually(lambda: len(replicas._members) == 2, "both are known")
        names.hosts = ["127.0.0.1"]
        only = [names.address("127.0.0.1")]
        await eventually(lambda: list(replicas._members) == only, "one is gone")


async def test_a_missing_index_fails_the_start(tmp_path: Path) -> None:
    """The message names the variable, the file and the command that builds it."""
    settings = OrchestratorSettings(index=str(tmp_path / "none"))
    with pytest.raises(StartupError, match=r"ORCHESTRATOR_INDEX: .*none is missing; build it with"):
        async with application(settings):
            pass
