"""The number of compute threads follows the container's quota, and their priority is lower."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.engine.threads import NICENESS, available_cpus, lower_priority
from tests.inference.stub_engine import running
from tests.inference.stub_runner import StubRunner


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("9900000 100000", 8),
        (None, 8),
    ],
)
def test_available_cpus_is_the_affinity_limited_by_the_quota(
    cpu_max: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded down, at least 1, and at most the CPUs in the affinity mask."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    path = tmp_path / "cpu.max"
    if cpu_max is not None:
        path.write_text(cpu_max)
    assert available_cpus(path) == expected


def niceness(thread: int = 0) -> int:
    """The niceness of a thread by its id; 0 is the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, thread)


by_thread = pytest.mark.skipif(sys.platform != "linux", reason="niceness belongs to the process")


@by_thread
def test_lower_priority_applies_to_the_thread_and_those_it_starts() -> None:
    """The priority of other threads does not change."""
    before = niceness()

    def compute() -> tuple[int, int]:
        lower_priority()
        with ThreadPoolExecutor(1) as started:
            return niceness(), started.submit(niceness).result()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(compute).result() == (min(before + NICENESS, 19),) * 2
    assert niceness() == before


def test_lower_priority_ignores_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox may forbid changing priorities."""

    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    lower_priority()


@by_thread
@pytest.mark.parametrize("on_cpu", [True, False])
async def test_an_engine_on_a_cpu_has_a_lower_priority(on_cpu: bool) -> None:
    """The engine's thread computes on a CPU; on a GPU it only launches kernels."""
    async with running(StubRunner(), on_cpu=on_cpu):
        (thread,) = (each for each in threading.enumerate() if each.name == "engine")
        assert thread.native_id is not None
        expected = min(niceness() + NICENESS, 19) if on_cpu else niceness()
        assert niceness(thread.native_id) == expected
    assert niceness() <= expected
