"""The SMG router (https://pypi.org/project/smg/) in front of Weir's engines.

`make smg` installs it into a separate environment, because its dependencies are not Weir's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.harness.processes import ROOT, Processes, free_port

DEFAULT_EXECUTABLE = ROOT / ".venv-smg" / "bin" / "smg"
READY_SECONDS = 120.0


class SmgRouter:
    """A router of engines that are listening; it ends with `processes`."""

    def __init__(
        self,
        processes: Processes,
        name: str,
        engines: Sequence[str],
        *,
        executable: Path = DEFAULT_EXECUTABLE,
        options: Sequence[str] = (),
    ) -> None:
        """`engines` are addresses, HOST:PORT. Raises FileNotFoundError without the program."""
        if not executable.is_file():
            raise FileNotFoundError(f"{executable} is missing; `make smg` installs the SMG router")
        self._processes = processes
        self._name = name
        self._num_engines = len(engines)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"http://127.0.0.1:{(metrics_port := free_port())}/metrics"
        processes.start(
            name,
            [
                *(str(executable), "launch", "--host", "127.0.0.1", "--port", str(port)),
                *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
                *("--worker-urls", *(f"grpc://{address}" for address in engines)),
                *options,
            ],
        )
        processes.wait_port(name, port)

    def wait_ready(self) -> None:
        """Waits until all engines are healthy and a text is encoded. Raises RuntimeError."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self._num_healthy() == self._num_engines and self._answers():
                return
            time.sleep(0.1)
        raise RuntimeError(f"SMG does not serve its engines after {READY_SECONDS:.0f} seconds")

    def workers(self) -> list[dict[str, object]]:
        """What the router knows of its engines."""
        response = httpx.get(f"{self.url}/workers", timeout=5, trust_env=False)
        workers: list[dict[str, object]] = response.json().get("workers", [])
        return workers

    def cpu_seconds(self) -> float:
        """CPU time of the router so far."""
        return self._processes.cpu_seconds(self._name)

    def memory_bytes(self) -> int:
        """Resident memory of the router."""
        return self._processes.memory_bytes(self._name)

    def _num_healthy(self) -> int:
        try:
            return sum(bool(worker.get("is_healthy")) for worker in self.workers())
        except httpx.HTTPError:
            return 0

    def _answers(self) -> bool:
        models = httpx.get(f"{self.url}/v1/models", timeout=5, trust_env=False).json()
        if not models.get("data"):
            return False
        body = {"model": models["data"][0]["id"], "prompt": "one", "max_tokens": 1}
        url = f"{self.url}/v1/completions"
        return httpx.post(url, json=body, timeout=20, trust_env=False).is_success
