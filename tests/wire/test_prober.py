"""How the latencies of `/livez` are measured and judged."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.wire.cpu_wait import CpuWait
from tests.wire.prober import Probe, summary

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(60)"


def test_only_the_wait_for_a_cpu_is_subtracted() -> None:
    """Of each probe its own wait."""
    result = summary([Probe(0.15, 0.14), Probe(0.002, 0.001), Probe(0.12, 0.01)])
    assert (result["num_probes"], result["max"]) == (3, 0.15)
    assert result["max_own"] == pytest.approx(0.11)
    assert result["max_cpu_wait"] == 0.14


@pytest.mark.parametrize(("script", "waits"), [(SPIN, True), (SLEEP, False)])
def test_a_wait_for_a_cpu_is_counted(script: str, waits: bool) -> None:
    """Two processes on one CPU: one that computes waits for it, one that sleeps does not."""
    with subprocess.Popen([sys.executable, "-c", script]) as measured:
        wait = CpuWait(measured.pid)
        os.sched_setaffinity(measured.pid, {0})
        with subprocess.Popen([sys.executable, "-c", SPIN]) as other:
            os.sched_setaffinity(other.pid, {0})
            time.sleep(0.3)  # both have started
            before = wait.read()
            time.sleep(0.4)
            waited = wait.since(before)
            other.kill()
        measured.kill()
    if not any(before.values()):
        pytest.skip("this kernel counts no waits")
    assert (waited > 0.05) is waits
