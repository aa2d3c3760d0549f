"""The threads of the forward pass: how many the container really gets, and who goes first."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

NICENESS = 10
"""Of threads that compute: beside one that answers they get a tenth of what that gets of a CPU."""

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """The CPUs of this process: its affinity, cut by the cgroup's quota; at least 1.

    `os.cpu_count` tells the machine's, and threads beyond the quota only wait for each other.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, int(quota) // int(period)))


def let_others_go_first() -> None:
    """Lowers the priority of the calling thread, and of those that it starts from now on.

    Linux counts niceness by thread. Elsewhere it is the whole process's, and stays as it is, as it
    does where a sandbox refuses.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(NICENESS)
