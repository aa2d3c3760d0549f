"""Runs several processes of each service, which tests can kill and restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.network import Namespace
from tests.chaos.proxy import Proxy
from tests.e2e.support.stack import ROOT, free_ports

READY_SECONDS = 300.0
"""Time to start several engines at once, on a busy machine."""

FAKE = {
    "INFERENCE_FAKE_MODEL": "true",
    "INFERENCE_MODEL_NAME": "demo",
    "INFERENCE_FAKE_TOKENS_PER_SECOND": "100",
}
"""Settings of the fake engine, which starts in a second; for work on these tests themselves."""

LAUNCHED = frozenset({"CHAOS_KEEPALIVE_SECONDS", "CHAOS_HANG_FOLDER"})
"""Variables of `tests.chaos.launch`, which starts the services if there is one of them."""

SERVICES = ("tokenizer", "inference", "orchestrator", "gateway")


class Node:
    """One process; it keeps its address over restarts."""

    def __init__(
        self,
        service: str,
        address: str,
        environment: Mapping[str, str],
        log: Path,
        namespace: Namespace | None = None,
    ) -> None:
        """`namespace`: the network namespace that it runs in; None: the host's."""
        self.service = service
        self.address = address
        self.log = log
        self._environment = environment
        self._prefix = [] if namespace is None else namespace.command
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **changed: str) -> None:
        """Starts the process, with some variables `changed`; does not wait until it is ready."""
        launch = ["tests.chaos.launch"] if LAUNCHED & self._environment.keys() else []
        command = [*self._prefix, sys.executable, "-m", *launch, self.service]
        command += ["--listen", self.address, "--metrics-listen", "127.0.0.1:0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**self._environment, **changed}, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal if the process runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """Waits for the process to exit; returns the exit code."""
        assert self.process is not None, "never started"
        return self.process.wait(timeout)

    def records(self, begin: int = 0) -> list[dict[str, Any]]:
        """What it has logged, from this character of the log on."""
        whole = self.log.read_text()[begin:].rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def num_messages(self, message: str) -> int:
        """How often it has logged this message."""
        return sum(record["message"] == message for record in self.records())

    def end(self) -> None:
        """Kills the process in any state and reaps it."""
        self.send(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


class Cluster:
    """All nodes, configured with each other's addresses or with those of proxies."""

    def __init__(
        self,
        folder: Path,
        numbers: Mapping[str, int],
        settings: Mapping[str, str] | None = None,
        routes: Mapping[str, str] | None = None,
        apart: tuple[str, Namespace] | None = None,
    ) -> None:
        """`routes` replaces a service's addresses for its clients, for example by proxies.

        `apart` names a service whose first node runs in this namespace.
        """
        names = [service for service in SERVICES for _ in range(numbers.get(service, 1))]
        ports = free_ports(len(names))
        hosts = ["127.0.0.1" if apart is None else apart[1].host] * len(names)
        namespaces: list[Namespace | None] = [None] * len(names)
        if apart is not None:
            place = names.index(apart[0])
            namespaces[place], hosts[place] = apart[1], apart[1].address
        addresses = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
        self.folder = folder
        by_service = {
            service: [a for name, a in zip(names, addresses, strict=True) if name == service]
            for service in SERVICES
        }
        routes = routes or {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            "TOKENIZER_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_MODEL": str(ROOT / "models" / "demo"),
            "INFERENCE_THREADS": "1",
            "INFERENCE_KV_CACHE_TOKENS": "65536",
            "ORCHESTRATOR_HOST": routes.get("orchestrator") or ",".join(by_service["orchestrator"]),
            "TOKENIZER_HOST": routes.get("tokenizer") or ",".join(by_service["tokenizer"]),
            "INFERENCE_HOST": routes.get("inference") or ",".join(by_service["inference"]),
            # For clusters that do not listen on loopback.
            "GATEWAY_ALLOW_ANONYMOUS": "true",
            # gRPC logs every lost connection, of which there are many here.
            "GRPC_VERBOSITY": "NONE",
            **(FAKE if os.environ.get("CHAOS_FAKE_MODEL") else {}),
            **(settings or {}),
        }
        self.nodes = [
            Node(name, address, self.environment, folder / f"{name}-{number}.log", namespace)
            for number, (name, address, namespace) in enumerate(
                zip(names, addresses, namespaces, strict=True)
            )
        ]

    def of(self, service: str) -> list[Node]:
        """The nodes of a service."""
        return [node for node in self.nodes if node.service == service]

    @property
    def urls(self) -> list[str]:
        """URLs of the gateways."""
        return [f"http://{node.address}" for node in self.of("gateway")]

    def wait_ready(self, timeout: float = READY_SECONDS) -> None:
        """Waits until every gateway is ready; fails with the logs."""
        end = time.monotonic() + timeout
        for url in self.urls:
            while not _is_ready(url):
                if time.monotonic() > end:
                    raise AssertionError(f"the cluster is not ready:\n{self.logs()}")
                time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every node's log."""
        texts = [(node.log.name, node.log.read_text()[-2000:]) for node in self.nodes]
        return "\n".join(f"--- {name}\n{text}" for name, text in texts)


@contextmanager
def running_cluster(
    folder: Path,
    numbers: Mapping[str, int],
    settings: Mapping[str, str] | None = None,
    routes: Mapping[str, str] | None = None,
    proxies: Sequence[Proxy] = (),
    apart: tuple[str, Namespace] | None = None,
) -> Iterator[Cluster]:
    """Yields a ready cluster; kills every process at the end.

    Sets the target of each proxy in `proxies` to one engine.
    """
    cluster = Cluster(folder, numbers, settings, routes, apart)
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
