"""Two inference processes with the demo model, and the SMG router in front of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.contenders.smg import DEFAULT_EXECUTABLE, SmgRouter
from benchmarks.harness.processes import Processes, free_port

ENGINES = ("one", "two")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allows for the start of the engines, which counts to the first test."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))


class Routed(NamedTuple):
    """The router, its engines' addresses, and the processes."""

    router: SmgRouter
    engines: dict[str, str]
    processes: Processes
    log: Path


@pytest.fixture(scope="session")
def executable() -> Path:
    """The router's program: the variable SMG, or where `make smg` installs it."""
    path = Path(os.environ.get("SMG") or DEFAULT_EXECUTABLE)
    assert path.is_file(), f"{path} is missing: `make smg` installs the SMG router"
    return path


@pytest.fixture(scope="session")
def routed(tmp_path_factory: pytest.TempPathFactory, executable: Path) -> Iterator[Routed]:
    """The router, ready."""
    log = tmp_path_factory.mktemp("smg") / "processes.log"
    with Processes(log) as processes:
        ports = {name: free_port() for name in ENGINES}
        for name, port in ports.items():
            processes.python(
                name,
                *("inference", "--listen", f"127.0.0.1:{port}", "--metrics-listen", "127.0.0.1:0"),
                *("--model-name", "demo", "--kv-cache-tokens", "16384", "--threads", "1"),
            )
        for name, port in ports.items():
            processes.wait_port(name, port)
        engines = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        options = ("--health-check-interval-secs", "1", "--health-failure-threshold", "1")
        router = SmgRouter(
            processes, "smg", list(engines.values()), executable=executable, options=options
        )
        router.wait_ready()
        yield Routed(router, engines, processes, log)
