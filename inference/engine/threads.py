"""Number, priority and stack of the threads that compute."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path

NICENESS = 10
"""Niceness of compute threads: on a shared CPU they get about a tenth of the time that a thread of
normal priority gets, such as the event loop's."""

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def available_cpus(cpu_max: Path = _CPU_MAX) -> int:
    """The CPUs of this process: its affinity, limited by the cgroup's quota; at least 1.

    `os.cpu_count` counts the machine's CPUs; threads beyond the quota only slow each other down.
    """
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):
        return cpus
    if quota == "max":
        return cpus
    return max(1, min(cpus, int(quota) // int(period)))


def lower_priority() -> None:
    """Lower the priority of the calling thread and of the threads that it starts afterwards.

    Does nothing where niceness belongs to the whole process (not Linux) or a sandbox refuses.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(NICENESS)


def stack_of(thread: threading.Thread) -> str:
    """The present stack of another thread, as in a traceback; empty if it has ended."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "" if frame is None else "".join(traceback.format_stack(frame))
