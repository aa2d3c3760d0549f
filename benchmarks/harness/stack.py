"""The four services of a benchmark, on loopback."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from benchmarks.harness.processes import ROOT, Processes, free_port

SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")
RELAY = ("orchestrator", "gateway")
"""The services that relay a token from the engine to the client."""

FAKE_MODEL = ("--fake-model", "--model-name", "demo", "--max-num-seqs", "2048")
READY_SECONDS = 240.0


def start_collector(processes: Processes) -> str:
    """Starts the trace view as OTLP collector; returns its endpoint."""
    port = free_port()
    listen = ("--listen", "127.0.0.1:0", "--grpc-listen", f"127.0.0.1:{port}")
    processes.python("collector", "scripts.traceview", *listen)
    return f"http://127.0.0.1:{port}"


class Services:
    """The four services with the demo model's tokenizer; they end with `processes`."""

    def __init__(
        self,
        processes: Processes,
        *,
        prefix: str = "",
        engine: Sequence[str] = FAKE_MODEL,
        more_engines: Mapping[str, Sequence[str]] | None = None,
        limits: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
        run: Sequence[str] = (),
        root: Path = ROOT,
        executable: str = sys.executable,
    ) -> None:
        """`limits` are additional arguments by service; `run` is a module that wraps a service.

        `more_engines` are the arguments of further inference services, by name. `root` is the
        checkout to run, and `executable` its Python.
        """
        self._processes = processes
        engines = {"inference": engine, **(more_engines or {})}
        modules = {name: "inference" if name in engines else name for name in (*SERVICES, *engines)}
        self._names = {name: prefix + name for name in modules}
        self._ports = {name: free_port() for name in modules}
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in self._ports.items()}
        self.metrics = {name: f"127.0.0.1:{free_port()}" for name in modules}
        self.url = f"http://{self.addresses['gateway']}"
        more = {**engines, **(limits or {})}
        hosts = {f"{name.upper()}_HOST": self.addresses[name] for name in SERVICES}
        hosts["INFERENCE_HOST"] = ",".join(self.addresses[name] for name in engines)
        for name, module in modules.items():
            listen = ("--listen", self.addresses[name], "--metrics-listen", self.metrics[name])
            command = (*run, module, *listen, "--log-level", "WARNING", *more.get(name, ()))
            variables = {**hosts, **(environment or {})}
            processes.python(
                self._names[name],
                *command,
                environment=variables,
                root=root,
                executable=executable,
            )

    def wait_ready(self) -> None:
        """Waits until the gateway is ready. Raises RuntimeError on timeout."""
        for name, port in self._ports.items():
            self._processes.wait_port(self._names[name], port)
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if httpx.get(f"{self.url}/readyz", timeout=30, trust_env=False).is_success:
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.url} is not ready after {READY_SECONDS:.0f} seconds")

    def sample(self, service: str, name: str) -> float:
        """The current value of a service's metric, summed over its labels."""
        text = httpx.get(f"http://{self.metrics[service]}/metrics", trust_env=False).text
        lines = (line for line in text.splitlines() if re.match(rf"{re.escape(name)}[ {{]", line))
        return sum(float(line.partition(" # ")[0].rpartition(" ")[2]) for line in lines)

    def cpu_seconds(self, names: Sequence[str] = RELAY) -> float:
        """CPU time of these services so far."""
        return self._processes.cpu_seconds(*(self._names[name] for name in names))

    def memory_bytes(self, names: Sequence[str] = RELAY) -> int:
        """Resident memory of these services."""
        return self._processes.memory_bytes(*(self._names[name] for name in names))
