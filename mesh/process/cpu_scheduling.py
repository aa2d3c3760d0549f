"""Short slices of Linux's EEVDF scheduler for the threads of a service (`sched_setattr`).

A request passes four processes, several times each, and at each of them may wait until another
thread's slice ends, which takes 1 to 3 ms by default. Since Linux 6.12 a thread may request its
own slice. A thread with a short slice gets no more CPU time, but is scheduled sooner after it
becomes runnable (Linux's Documentation/scheduler/sched-eevdf.rst).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct

logger = logging.getLogger("mesh.process.cpu_scheduling")

SLICE_SECONDS = 0.0001
"""Slice of the services' threads: the shortest that Linux allows."""

_SYSTEM_CALLS = {("Linux", "x86_64"): 314, ("Linux", "aarch64"): 274}
"""Number of the system call sched_setattr(2), which Python and the C library do not wrap."""

_ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""struct sched_attr in its first version: size, policy, flags, nice, priority, runtime, deadline,
period; times in nanoseconds."""


def request_slice(seconds: float = SLICE_SECONDS) -> bool:
    """Set the slice of the calling thread and of the threads that it starts from now on.

    Returns whether the system call succeeded. Linux before 6.12 ignores the slice; other systems
    and some sandboxes refuse the call. Neither is an error: requests only wait a little longer.
    """
    return _set_slice(seconds)


def reset_slice() -> bool:
    """Return the calling thread, and the threads that it starts, to the kernel's default slice."""
    return _set_slice(0.0)


def _set_slice(seconds: float) -> bool:
    number = _SYSTEM_CALLS.get((platform.system(), platform.machine()))
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    runtime = round(seconds * 1e9)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, runtime, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, attributes, 0) != 0:
        error = os.strerror(ctypes.get_errno())
        logger.debug("scheduler slice not set", extra={"error": error})
        return False
    return True
