"""Runs the four processes on free ports, as `make run-local` does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")


def free_ports(number: int) -> list[int]:
    """Ports that are free at the moment of the call."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Stack:
    """Four processes, their addresses and their logs."""

    def __init__(self, folder: Path, index: Path | None, settings: Mapping[str, str]) -> None:
        """Starts no process. Logs go to `folder`; `settings` overrides the environment."""
        ports = iter(free_ports(8))
        self.folder = folder
        self.addresses = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
        self.metrics = {name: f"127.0.0.1:{next(ports)}" for name in SERVICES}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            "TOKENIZER_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_MAX_NUM_SEQS": "16",
            "INFERENCE_KV_CACHE_TOKENS": "32768",
            "ORCHESTRATOR_INDEX": str(index or ""),
            "ORCHESTRATOR_HOST": self.addresses["orchestrator"],
            "TOKENIZER_HOST": self.addresses["tokenizer"],
            "INFERENCE_HOST": self.addresses["inference"],
            **settings,
        }

    @property
    def url(self) -> str:
        """URL of the gateway."""
        return f"http://{self.addresses['gateway']}"

    def start(self, *names: str) -> None:
        """Starts the named services; all of them by default."""
        for name in names or SERVICES:
            self.start_as(name, name)

    def start_as(self, name: str, module: str, *flags: str) -> None:
        """Starts `module` at the address of `name`."""
        command = [sys.executable, "-m", module, "--listen", self.addresses[name], *flags]
        if module != "gateway":
            command += ["--metrics-listen", self.metrics[name]]
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    @contextmanager
    def another_gateway(self, *flags: str) -> Iterator[str]:
        """Runs a second gateway with additional flags; yields its URL."""
        name = "another"
        self.addresses[name] = f"127.0.0.1:{free_ports(1)[0]}"
        self.start_as(name, "gateway", *flags)
        url = f"http://{self.addresses[name]}"
        try:
            self.wait_ready(url=url)
            yield url
        finally:
            process = self.processes.pop(name)
            process.terminate()
            process.wait(20)

    def log(self, name: str) -> Path:
        """The file that receives a service's output."""
        return self.folder / f"{name}.log"

    def wait_ready(self, timeout: float = 180.0, url: str = "") -> float:
        """Waits until `/readyz` returns 200 and returns the seconds; fails with the logs."""
        started = time.monotonic()
        while time.monotonic() - started < timeout:
            dead = [name for name, process in self.processes.items() if process.poll() is not None]
            if dead:
                break
            try:
                if httpx.get(f"{url or self.url}/readyz", timeout=2).status_code == 200:
                    return time.monotonic() - started
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        logs = "\n".join(f"--- {name}\n{self.log(name).read_text()}" for name in self.processes)
        raise AssertionError(f"the stack is not ready:\n{logs}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> dict[str, int]:
        """Sends a signal to all processes and returns their exit codes."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(number)
        try:
            return {name: process.wait(20) for name, process in self.processes.items()}
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()


@contextmanager
def running_stack(
    folder: Path, index: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """Yields a ready stack; always stops it at the end."""
    stack = Stack(folder, index, settings or {})
    try:
        stack.start()
        stack.wait_ready()
        yield stack
    finally:
        stack.stop()
