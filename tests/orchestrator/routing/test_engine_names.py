"""Discovery of engines by DNS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from mesh.process.lifecycle import StartupError
from orchestrator.application import application
from orchestrator.settings import OrchestratorSettings
from tests.helpers import eventually
from tests.orchestrator.fakes import FakeInference, orchestrator
from tests.orchestrator.test_service import generate, request

pytestmark = pytest.mark.timeout(20)


class Names:
    """A resolver that returns `addresses` for the name `engines`, and fails if there are none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = ["127.0.0.1"]
        self.num_failed = 0
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
            if host != "engines":
                return await real(host, port, **options)
            if not self.addresses:
                self.num_failed += 1
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return [(2, 1, 6, "", (address, port)) for address in self.addresses]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


async def test_engines_follow_the_resolved_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new address is used; a removed one gets no new requests, but finishes its streams."""
    names = Names(monkeypatch)
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.05) as running:
        replicas = running.service._replicas
        port = running.upstreams[0].address.rpartition(":")[2]
        replicas._targets = [f"engines:{port}"]
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        await eventually(lambda: len(replicas._members) == 2, "the new address is known")
        running.engine.delay = 0.01
        generating = asyncio.create_task(generate(running, request()))
        await eventually(lambda: running.engine.num_open == 1, "a stream runs")
        names.addresses = ["127.0.0.2"]
        await eventually(lambda: not replicas.ready, "the old one gets nothing new")
        assert (await generating)[-1].HasField("finish")
        await eventually(lambda: list(replicas._members) == [f"127.0.0.2:{port}"], "it is gone")
        names.addresses = ["127.0.0.1"]
        await eventually(lambda: len(replicas.ready) == 1, "it is back")


async def test_a_failed_lookup_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The previous addresses remain in use."""
    names = Names(monkeypatch)
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.02) as running:
        replicas = running.service._replicas
        replicas._targets = [running.upstreams[0].address.replace("127.0.0.1", "engines")]
        await eventually(lambda: "engines" in str(replicas._answers), "the name is known")
        names.addresses = []
        await eventually(lambda: names.num_failed > 2, "lookups fail")
        assert len(replicas.ready) == 1
        await generate(running, request())


async def test_an_empty_name_keeps_no_foreign_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model scaled to zero does not keep engines that another name has taken over."""
    names = Names(monkeypatch)
    async with orchestrator(FakeInference(), dns_refresh_seconds=0.02) as running:
        replicas = running.service._replicas
        port = running.upstreams[0].address.rpartition(":")[2]
        replicas._targets = [f"engines:{port}", f"nobody.invalid:{port}"]
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        await eventually(lambda: len(replicas._members) == 2, "both are known")
        names.addresses = ["127.0.0.1"]
        await eventually(lambda: list(replicas._members) == [f"127.0.0.1:{port}"], "one is gone")


async def test_a_missing_index_fails_the_start(tmp_path: Path) -> None:
    """The message names the variable, the file and the command that builds it."""
    settings = OrchestratorSettings(index=str(tmp_path / "none"))
    with pytest.raises(StartupError, match=r"ORCHESTRATOR_INDEX: .*none is missing; build it with"):
        async with application(settings):
            pass
