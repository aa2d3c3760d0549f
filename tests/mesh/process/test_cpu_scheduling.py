"""The slice of the EEVDF scheduler that a thread requests is set, and its threads inherit it."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from mesh.process import cpu_scheduling

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
ATTRIBUTES = struct.Struct("<IIQiIQQQ")
FIRST_WITH_SLICES = (6, 12)


def kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in platform.release().split(".")[:2])


pytestmark = pytest.mark.skipif(
    platform.system() != "Linux"
    or platform.machine() not in SCHED_GETATTR
    or kernel() < FIRST_WITH_SLICES,
    reason="needs Linux 6.12 on x86-64 or arm64",
)


def slice_ns() -> int:
    """The calling thread's slice, read from the kernel."""
    buffer = ctypes.create_string_buffer(ATTRIBUTES.size)
    number = SCHED_GETATTR[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number, 0, buffer, ATTRIBUTES.size, 0) == 0, ctypes.get_errno()
    return int(ATTRIBUTES.unpack(buffer.raw)[5])


def in_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread, so that its slice ends with the thread."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def test_threads_inherit_a_short_slice_and_can_reset_it() -> None:
    """A started thread has the slice, and its reset does not change its parent's."""

    def parent() -> None:
        default, niceness = slice_ns(), os.getpriority(os.PRIO_PROCESS, 0)
        assert cpu_scheduling.request_slice()
        assert slice_ns() == 100_000 < default
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
        in_thread(child)
        assert slice_ns() == 100_000

    def child() -> None:
        assert slice_ns() == 100_000
        assert cpu_scheduling.reset_slice()
        assert slice_ns() > 100_000

    in_thread(parent)


def test_a_refused_system_call_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some sandboxes refuse unknown system calls; here the number belongs to none."""
    monkeypatch.setattr(
        cpu_scheduling, "_SYSTEM_CALLS", {(platform.system(), platform.machine()): 99_999}
    )
    assert not cpu_scheduling.request_slice()


def test_other_systems_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a number of the system call, none is made."""
    monkeypatch.setattr(cpu_scheduling, "_SYSTEM_CALLS", {})
    assert not cpu_scheduling.request_slice()


def test_a_service_requests_a_short_slice() -> None:
    """`run_process` requests it: a process prints its slice and ends."""
    script = (
        "import asyncio\n"
        "from mesh.process import lifecycle\n"
        "from mesh.process.settings import ServiceSettings\n"
        "from tests.mesh.process.test_cpu_scheduling import slice_ns\n"
        "async def serve(stop): print(slice_ns())\n"
        "lifecycle.run_process('tokenizer', ServiceSettings(), serve)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "100000", done.stderr
