"""Services use gRPC's epoll1 engine, and gRPC's core knows the names of the experiments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from mesh.rpc.polling import EPOLL1_ENGINE, EXPERIMENTS_VARIABLE

NUM_CALLS = 50
CALL_AND_COUNT = f"""
import asyncio
import re
from pathlib import Path

from mesh.rpc.polling import use_epoll1_engine

use_epoll1_engine()

from mesh.rpc.channel import open_channel
from mesh.rpc.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc


def switches():
    tasks = [path for path in Path("/proc/self/task").iterdir()]
    engine = [path for path in tasks if "event_engine" in (path / "comm").read_text()]
    texts = [(path / "status").read_text() for path in engine]
    return sum(int(re.search(r"voluntary_ctxt_switches:\\s+(\\d+)", text)[1]) for text in texts)


async def main():
    server = Server([])
    channel = open_channel(f"127.0.0.1:{{await server.start('127.0.0.1:0')}}")
    health = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest()
    await health.Check(request)
    before = switches()
    for _ in range({NUM_CALLS}):
        await health.Check(request)
    print(switches() - before)
    await channel.close()
    await server.drain(0)


asyncio.run(main())
"""


def call(environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Makes calls in a separate process, which prints how often its event engine's threads woke."""
    inherited = {k: v for k, v in os.environ.items() if k != EXPERIMENTS_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", CALL_AND_COUNT],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_calls_do_not_wake_the_event_engine() -> None:
    """With the epoll1 engine few calls wake its threads; gRPC's log names no unknown experiment."""
    done = call({})
    assert "experiment" not in done.stderr
    assert int(done.stdout) < NUM_CALLS
    newer = call({EXPERIMENTS_VARIABLE: "event_engine_client,event_engine_listener"})
    assert int(newer.stdout) > 2 * NUM_CALLS


def test_the_environment_has_precedence() -> None:
    """`use_epoll1_engine` sets the variable only where it is not set."""
    script = (
        "import os; from mesh.rpc.polling import use_epoll1_engine; use_epoll1_engine(); "
        "print(os.environ['GRPC_EXPERIMENTS'])"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, EXPERIMENTS_VARIABLE: "tcp_rcv_lowat"}
    assert subprocess.check_output(command, env=environment, text=True).strip() == "tcp_rcv_lowat"
    del environment[EXPERIMENTS_VARIABLE]
    assert subprocess.check_output(command, env=environment, text=True).strip() == EPOLL1_ENGINE


IMPORT_ALL = """
import importlib, os, pkgutil
import mesh
before = dict(os.environ)
for module in pkgutil.walk_packages(mesh.__path__, "mesh."):
    importlib.import_module(module.name)
assert dict(os.environ) == before
"""


def test_importing_mesh_does_not_change_the_environment() -> None:
    """No module of mesh sets a variable when it is imported."""
    environment = {k: v for k, v in os.environ.items() if k != EXPERIMENTS_VARIABLE}
    subprocess.run([sys.executable, "-c", IMPORT_ALL], env=environment, check=True, timeout=60)


START = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            print(os.environ.get("GRPC_EXPERIMENTS"))

sys.meta_path.insert(0, Watch())
sys.argv = ["service", "--help"]
runpy.run_module("{service}", run_name="__main__")
"""


@pytest.mark.parametrize("service", ["gateway", "orchestrator", "tokenizer", "inference"])
def test_it_is_set_before_a_service_imports_grpc(service: str) -> None:
    """When a service first imports grpc, the variable is set."""
    environment = {k: v for k, v in os.environ.items() if k != EXPERIMENTS_VARIABLE}
    command = [sys.executable, "-c", START.format(service=service)]
    printed = subprocess.check_output(command, env=environment, text=True)
    assert printed.splitlines()[0] == EPOLL1_ENGINE
