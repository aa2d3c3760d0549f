"""Runs a Prometheus server that scrapes a stack, and queries it."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.support.stack import Stack, free_ports


class Prometheus:
    """Client of the HTTP API of a Prometheus server."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10, trust_env=False)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression returns now. Fails with Prometheus's error message."""
        return self._get("/api/v1/query", query=expression)["result"]  # type: ignore[no-any-return]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """The exemplars of the last five minutes."""
        now = time.time()
        found = self._get("/api/v1/query_exemplars", query=expression, start=now - 300, end=now)
        return found  # type: ignore[no-any-return]

    def is_ready(self) -> bool:
        """Whether the server is ready."""
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _get(self, path: str, **parameters: object) -> Any:
        answer = self._client.get(path, params={k: str(v) for k, v in parameters.items()}).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def scraping(stack: Stack, folder: Path, rules: list[Path]) -> Iterator[Prometheus]:
    """Runs a Prometheus with `rules` that scrapes the four services every second."""
    addresses = {**stack.metrics, "gateway": stack.addresses["gateway"]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [
            {
                "job_name": name,
                # As the chart's Prometheus labels its targets.
                "static_configs": [
                    {"targets": [address], "labels": {"namespace": "weir", "pod": f"{name}-0"}}
                ],
            }
            for name, address in addresses.items()
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [
        str(shutil.which("prometheus")),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    prometheus = Prometheus(f"http://{address}")
    try:
        until(prometheus.is_ready, lambda: f"Prometheus is not ready:\n{log.read_text()[-2000:]}")
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(20)


def until(condition: Callable[[], bool], what: Callable[[], str], timeout: float = 60.0) -> None:
    """Waits until `condition()` is true; fails with the message `what()`."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)
