"""Many real processes: each service as often as wanted, killed and restarted one by one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.chaos.proxy import Proxy
from tests.e2e.support.stack import ROOT, free_ports

READY_SECONDS = 300.0
"""Several engines load at once, on a machine that may be busy."""

FAKE = {
    "INFERENCE_FAKE_MODEL": "true",
    "INFERENCE_MODEL_NAME": "demo",
    "INFERENCE_FAKE_TOKENS_PER_SECOND": "100",
}
"""Engines that make their ids up, for work on these tests themselves: they start in a second."""

SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")


class Node:
    """One process, at an address that it keeps over restarts."""

    def __init__(
        self, service: str, address: str, environment: Mapping[str, str], log: Path
    ) -> None:
        self.service = service
        self.address = address
        self.log = log
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process; it need not be ready yet."""
        command = [sys.executable, "-m", self.service, "--listen", self.address]
        command += ["--metrics-listen", "127.0.0.1:0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**self._environment}, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if there is anybody to get it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """The exit code."""
        assert self.process is not None, "never started"
        return self.process.wait(timeout)

    def end(self) -> None:
        """Ends it whatever state it is in."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


class Cluster:
    """Nodes that know one another. The addresses behind can be replaced by proxies'."""

    def __init__(
        self,
        folder: Path,
        numbers: Mapping[str, int],
        settings: Mapping[str, str] | None = None,
        routes: Mapping[str, str] | None = None,
    ) -> None:
        """`routes`: by service, where its callers look for it instead of at its nodes."""
        names = [service for service in SERVICES for _ in range(numbers.get(service, 1))]
        ports = free_ports(len(names))
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self.folder = folder
        by_service = {
            service: [a for name, a in zip(names, addresses, strict=True) if name == service]
            for service in SERVICES
        }
        given = routes or {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            "TOKENIZER_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_THREADS": "1",
            "INFERENCE_KV_CACHE_TOKENS": "65536",
            "ORCHESTRATOR_HOST": given.get("orchestrator") or ",".join(by_service["orchestrator"]),
            "TOKENIZER_HOST": given.get("tokenizer") or ",".join(by_service["tokenizer"]),
            "INFERENCE_HOST": given.get("inference") or ",".join(by_service["inference"]),
            # gRPC tells of every connection that ends, and here many do.
            "GRPC_VERBOSITY": "NONE",
            **(FAKE if os.environ.get("CHAOS_FAKE_MODEL") else {}),
            **(settings or {}),
        }
        self.nodes = [
            Node(name, address, self.environment, folder / f"{name}-{number}.log")
            for number, (name, address) in enumerate(zip(names, addresses, strict=True))
        ]

    def of(self, service: str) -> list[Node]:
        """The nodes of a service."""
        return [node for node in self.nodes if node.service == service]

    @property
    def urls(self) -> list[str]:
        """Where the gateways answer."""
        return [f"http://{node.address}" for node in self.of("gateway")]

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Returns once every gateway says that it is ready; fails with the logs."""
        end = time.monotonic() + timeout
        for url in self.urls:
            while not _is_ready(url):
                if time.monotonic() > end:
                    raise AssertionError(f"never ready:\n{self.logs()}")
                time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every node."""
        texts = [(node.log.name, node.log.read_text()[-2000:]) for node in self.nodes]
        return "\n".join(f"--- {name}\n{text}" for name, text in texts)


@contextmanager
def running_cluster(
    folder: Path,
    numbers: Mapping[str, int],
    settings: Mapping[str, str] | None = None,
    routes: Mapping[str, str] | None = None,
    proxies: Sequence[Proxy] = (),
) -> Iterator[Cluster]:
    """A cluster that is ready; every process is ended with the block.

    `proxies` are told which engine each stands before.
    """
    cluster = Cluster(folder, numbers, settings, routes)
    for proxy, node in zip(proxies, cluster.of("inference"), strict=False):
        proxy.target = node.address
    try:
        for node in cluster.nodes:
            node.start()
        cluster.wait_ready()
        yield cluster
    finally:
        for node in cluster.nodes:
            node.end()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
