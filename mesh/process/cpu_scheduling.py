"""Short turns on the CPU: what answers a request need not wait for the turns of others.

Linux gives the CPU to whoever has waited longest, and leaves it to them for a slice of 1 to 3 ms.
A request comes by four processes, several times each, and may find others' slices before it at each
of them. Since Linux 6.12 a thread may ask for slices of its own length: who asks for short ones
gets no more of the CPU, but gets it sooner (Documentation/scheduler/sched-eevdf.rst).
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct

logger = logging.getLogger("mesh.process.cpu_scheduling")

SHORT_SECONDS = 0.0001
"""The shortest that Linux gives."""

USUAL_SECONDS = 0.0
"""What Linux gives to whoever does not ask."""

_SYSTEM_CALLS = {("Linux", "x86_64"): 314, ("Linux", "aarch64"): 274}
"""The number of sched_setattr(2), for which Python and the C library have no function."""

_ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""struct sched_attr in its first form: size, policy, flags, nice, priority, runtime, deadline,
period; times in nanoseconds. The policy of all ordinary threads is 0."""


def ask_for(seconds: float) -> bool:
    """Asks for slices of this length for the calling thread and those that it starts from now on.

    Returns whether the system took it: an older kernel takes it and does nothing, another system
    or a sandbox may refuse, and nothing is lost but time.
    """
    number = _SYSTEM_CALLS.get((platform.system(), platform.machine()))
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    runtime = round(seconds * 1e9)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, runtime, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, attributes, 0) != 0:
        error = os.strerror(ctypes.get_errno())
        logger.debug("time slices stay as they are", extra={"error": error})
        return False
    return True
