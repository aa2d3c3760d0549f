"""Processes of a benchmark: started, waited for, measured, ended."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
_PAGE = os.sysconf("SC_PAGE_SIZE")


PORTS = range(20_000, 32_768)
"""Below those that the system gives to whoever connects: nobody takes one before its listener."""

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, another one each time."""
    while True:
        port = random.choice(PORTS)
        if port in _given:
            continue
        _given.add(port)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


class Processes:
    """Processes by name; all are ended with the block."""

    def __init__(self, log: Path) -> None:
        """What they print goes to the file `log`."""
        self._log = log.open("ab")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()

    def python(
        self,
        name: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
        executable: str = sys.executable,
    ) -> None:
        """Starts `python -m …`."""
        self.start(name, [executable, "-m", *arguments], environment, root)

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        root: Path = ROOT,
    ) -> None:
        """Starts a command in a repository's root, whose packages it then imports."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        self._processes[name] = subprocess.Popen(
            self._as_started(name, command),
            cwd=root,
            env={**variables, "GRPC_VERBOSITY": "NONE", **(environment or {})},
            stdout=self._log,
            stderr=self._log,
        )

    def _as_started(self, name: str, command: Sequence[str]) -> Sequence[str]:
        """For subclasses: the command to start in its place."""
        return command

    def wait_port(self, name: str, port: int, timeout: float = 300.0) -> None:
        """Returns once the process listens there. RuntimeError if it does not."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._processes[name].poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError(f"{name} does not listen on {port}; see {self._log.name}")

    def cpu_seconds(self, *names: str) -> float:
        """Time on a CPU of these processes so far, all threads that they have now."""
        return sum(map(self._cpu, names))

    def memory_bytes(self, *names: str) -> int:
        """Resident memory of these processes now."""
        return sum(map(self._memory, names))

    def _cpu(self, name: str) -> float:
        # Nanoseconds on a CPU, the first number of each thread's schedstat: `stat` has only ticks
        # of 10 ms. A thread that has ended is no longer there, so count those that stay.
        threads = Path(f"/proc/{self._processes[name].pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def _memory(self, name: str) -> int:
        return int(self._stat(name).rpartition(")")[2].split()[21]) * _PAGE

    def _stat(self, name: str) -> str:
        return Path(f"/proc/{self._processes[name].pid}/stat").read_text()
