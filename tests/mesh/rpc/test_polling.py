"""The core's poller is chosen before the core is loaded, and the core knows what is asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from mesh.rpc.polling import EXPERIMENTS_VARIABLE, OLDER_POLLER

NUM_CALLS = 50
CALL_AND_COUNT = f"""
import asyncio
import re
from pathlib import Path

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
    """Calls in a process of its own; it prints how often its event engine's threads woke."""
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
def test_a_service_takes_the_older_poller() -> None:
    """And the core does not complain of a name that it has forgotten, as a later one may."""
    done = call({})
    assert "experiment" not in done.stderr
    assert int(done.stdout) < NUM_CALLS
    newer = call({EXPERIMENTS_VARIABLE: "event_engine_client,event_engine_listener"})
    assert int(newer.stdout) > 2 * NUM_CALLS


def test_who_sets_the_variable_is_obeyed() -> None:
    """Ours is a default."""
    command = [sys.executable, "-c", "import os, mesh; print(os.environ['GRPC_EXPERIMENTS'])"]
    environment = {**os.environ, EXPERIMENTS_VARIABLE: "tcp_rcv_lowat"}
    assert subprocess.check_output(command, env=environment, text=True).strip() == "tcp_rcv_lowat"
    del environment[EXPERIMENTS_VARIABLE]
    assert subprocess.check_output(command, env=environment, text=True).strip() == OLDER_POLLER


@pytest.mark.parametrize("service", ["gateway", "orchestrator", "tokenizer", "inference"])
def test_it_is_set_before_a_service_loads_grpc(service: str) -> None:
    """The core reads the variable when it is loaded, and never again."""
    script = f"import sys, {service}.__main__; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert modules.index("mesh.rpc.polling") < modules.index("grpc")
