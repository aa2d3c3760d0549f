"""How many threads the forward pass may use: what the container really gets."""

from __future__ import annotations

import os
from pathlib import Path

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
