"""How many threads the container's quota allows, and that they let others go first."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inference.engine.threads import NICENESS, available_cpus, let_others_go_first
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
def test_the_quota_cuts_the_affinity(
    cpu_max: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded down, at least one, and never more than the process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    path = tmp_path / "cpu.max"
    if cpu_max is not None:
        path.write_text(cpu_max)
    assert available_cpus(path) == expected


def niceness(thread: int = 0) -> int:
    """Of a thread by its number, 0 being the calling one."""
    return os.getpriority(os.PRIO_PROCESS, thread)


by_thread = pytest.mark.skipif(sys.platform != "linux", reason="niceness is the process's")


@by_thread
def test_a_thread_and_those_it_starts_let_others_go_first() -> None:
    """And nobody else's priority changes."""
    before = niceness()

    def compute() -> tuple[int, int]:
        let_others_go_first()
        with ThreadPoolExecutor(1) as started:
            return niceness(), started.submit(niceness).result()

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(compute).result() == (min(before + NICENESS, 19),) * 2
    assert niceness() == before


def test_a_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a sandbox that does not let priorities be set."""

    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refuse)
    let_others_go_first()


@by_thread
@pytest.mark.parametrize("on_cpu", [True, False])
async def test_an_engine_on_a_cpu_lets_others_go_first(on_cpu: bool) -> None:
    """Its own thread does, where it computes itself; on a GPU there is nobody to wait for."""
    async with running(StubRunner(), on_cpu=on_cpu):
        (thread,) = (each for each in threading.enumerate() if each.name == "engine")
        assert thread.native_id is not None
        expected = min(niceness() + NICENESS, 19) if on_cpu else niceness()
        assert niceness(thread.native_id) == expected
    assert niceness() <= expected
