"""Time slices: what the kernel is asked for is what it has, for the thread and those it starts."""

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
    """The calling thread's, as the kernel tells it."""
    buffer = ctypes.create_string_buffer(ATTRIBUTES.size)
    number = SCHED_GETATTR[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.syscall(number, 0, buffer, ATTRIBUTES.size, 0) == 0, ctypes.get_errno()
    return int(ATTRIBUTES.unpack(buffer.raw)[5])


def in_thread(work: Callable[[], None]) -> None:
    """Runs `work` in a thread that is gone afterwards, and its time slice with it."""
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


def test_threads_inherit_a_short_slice_and_give_it_back() -> None:
    def asking() -> None:
        usual, niceness = slice_ns(), os.getpriority(os.PRIO_PROCESS, 0)
        assert cpu_scheduling.ask_for(cpu_scheduling.SHORT_SECONDS)
        assert slice_ns() == 100_000 < usual
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
        in_thread(computing)
        assert slice_ns() == 100_000

    def computing() -> None:
        assert slice_ns() == 100_000
        assert cpu_scheduling.ask_for(cpu_scheduling.USUAL_SECONDS)
        assert slice_ns() > 100_000

    in_thread(asking)


def test_a_refusal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a sandbox refuses what it does not know: a number that is no system call."""
    monkeypatch.setattr(
        cpu_scheduling, "_SYSTEM_CALLS", {(platform.system(), platform.machine()): 99_999}
    )
    assert not cpu_scheduling.ask_for(cpu_scheduling.SHORT_SECONDS)


def test_another_system_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_scheduling, "_SYSTEM_CALLS", {})
    assert not cpu_scheduling.ask_for(cpu_scheduling.SHORT_SECONDS)


def test_a_service_asks() -> None:
    """A process has it once it runs: told by a process that ends there."""
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
