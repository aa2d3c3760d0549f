"""A gateway process, connected to a fake orchestrator in the test's process."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from gateway.upstream.client import SERVICE
from mesh.rpc.server import Servicer
from mesh.v1 import orchestrator_pb2_grpc
from tests.e2e.support.stack import ROOT, free_ports
from tests.gateway.fakes import FakeOrchestrator, Script
from tests.helpers import eventually, serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test in this folder as `slow`."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


class GatewayProcess(NamedTuple):
    """A running gateway, and its orchestrator."""

    port: int
    process: psutil.Process
    log: Path
    orchestrator: FakeOrchestrator

    @property
    def url(self) -> str:
        """URL of the gateway."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_connections(self) -> int:
        """Number of clients' connections."""
        connections = self.process.net_connections("tcp4")
        return sum(each.laddr.port == self.port and each.raddr != () for each in connections)


@pytest.fixture
async def gateway_process(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    """A gateway that is ready; terminated at the end."""
    orchestrator = FakeOrchestrator(Script(seconds_before_delta=0.01))
    register = orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server
    [port] = free_ports(1)
    log = tmp_path / "gateway.log"
    async with serve(Servicer(SERVICE, register, orchestrator)) as served:
        flags = ["--listen", f"127.0.0.1:{port}", "--orchestrator-host", served.address]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway", *flags, "--drain-seconds", "1"),
                cwd=ROOT,
                env={key: value for key, value in os.environ.items() if "OTEL_" not in key},
                stdout=output,
                stderr=output,
            )
        gateway = GatewayProcess(port, psutil.Process(process.pid), log, orchestrator)
        try:
            await eventually(lambda: _is_live(gateway.url), "the gateway answers", timeout=30)
            yield gateway
        finally:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0


def _is_live(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
