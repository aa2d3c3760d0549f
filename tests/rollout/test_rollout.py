"""Short forms of the rehearsal: the only orchestrator restarts, and one of two is killed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.rollout.rehearsal import NOT_PERMITTED, ROOT

pytestmark = [pytest.mark.timeout(120), pytest.mark.e2e, pytest.mark.slow]

SHORT = (
    *("--services", "orchestrator"),
    *("--drain", "6", "--probe", "1", "--late", "1", "--settle", "0.5"),
    *("--streams", "16", "--clients", "4", "--tokens", "60"),
)


def test_a_restart_of_the_only_orchestrator_refuses_nothing() -> None:
    """No request is refused, no stream is broken, and every text is the expected one."""
    _rehearse("--changes", "restart", "--replicas", "1")


def test_new_requests_are_served_after_a_kill() -> None:
    """Within a second of the SIGKILL of one of two orchestrators; none is refused."""
    _rehearse("--changes", "kill", "--replicas", "2")


def _rehearse(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.rollout.rehearsal", *SHORT, *arguments]
    command += ["--seed", os.environ.get("SEED") or "1"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110
    )
    if done.returncode == NOT_PERMITTED:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
