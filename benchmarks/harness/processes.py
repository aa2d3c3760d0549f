"""Starts, measures and ends the processes of a benchmark."""

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
"""Below the kernel's ephemeral ports, so that no client connection uses one meanwhile."""

_given: set[int] = set()


def free_port() -> int:
    """A free port, different on each call."""
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
    """Processes by name. Leaving the block ends all of them."""

    def __init__(self, log: Path) -> None:
        """Their output is appended to the file `log`."""
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
        """Starts a command in the root of a checkout, so that it imports that checkout."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        self._processes[name] = subprocess.Popen(
            self._wrapped(name, command),
            cwd=root,
            env={**variables, "GRPC_VERBOSITY": "NONE", **(environment or {})},
            stdout=self._log,
            stderr=self._log,
        )

    def _wrapped(self, name: str, command: Sequence[str]) -> Sequence[str]:
        """The command to run; subclasses wrap it."""
        return command

    def wait_port(self, name: str, port: int, timeout: float = 300.0) -> None:
        """Waits until the process listens on the port. Raises RuntimeError."""
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
        """CPU time of these processes so far, summed over their live threads."""
        return sum(map(self._cpu, names))

    def memory_bytes(self, *names: str) -> int:
        """Resident memory of these processes now."""
        return sum(map(self._memory, names))

    def _cpu(self, name: str) -> float:
        # schedstat has nanoseconds, /proc/PID/stat only ticks of 10 ms. It does not count threads
        # that have ended.
        threads = Path(f"/proc/{self._processes[name].pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def _memory(self, name: str) -> int:
        return int(self._stat(name).rpartition(")")[2].split()[21]) * _PAGE

    def _stat(self, name: str) -> str:
        return Path(f"/proc/{self._processes[name].pid}/stat").read_text()
