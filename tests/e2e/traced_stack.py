"""The four processes with a second engine and an impatient gateway, all traced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.collector import Collector, running_collector
from tests.e2e.stack import Stack, free_ports

MAX_CONCURRENT = 2
IMPATIENT_SECONDS = 1.0
START_SECONDS = 240.0
"""Torch is loaded twice, on a machine that may be busy."""


class TracedStack(Stack):
    """A stack whose spans go to `collector`."""

    def __init__(self, folder: Path, index: Path, collector: Collector) -> None:
        ports = [f"127.0.0.1:{port}" for port in free_ports(5)]
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": str(MAX_CONCURRENT),
            # Two engines on one small machine: threads would wait for each other.
            "INFERENCE_THREADS": "1",
            # Where native code is done with a search in 0.1 seconds, calls take a twentieth of it.
            "INFERENCE_KERNELS": "torch",
            "INFERENCE_MAX_NUM_SEQS": "4",
            # The smallest that may be: a long prompt is computed in many steps.
            "INFERENCE_MAX_NUM_BATCHED_TOKENS": "16",
            "INFERENCE_TRACED_STEPS": "4",
        }
        super().__init__(folder, index, settings)
        self.collector = collector
        self.addresses |= {"inference-2": ports[0], "impatient": ports[1]}
        self.metrics |= {"inference-2": ports[2], "impatient": ports[3]}
        engines = ",".join(self.addresses[name] for name in ("inference", "inference-2"))
        self._environment["INFERENCE_HOST"] = engines

    def start_all(self) -> None:
        """Everything, until both engines serve."""
        self.start()
        self.start_as("inference-2", "inference")
        seconds = str(IMPATIENT_SECONDS)
        self.start_as("impatient", "gateway", "--request-timeout-seconds", seconds)
        self.wait_ready(START_SECONDS)
        self.wait_engines(2)

    def wait_engines(self, number: int) -> None:
        """Returns once the orchestrator has so many engines."""
        wanted = f"orchestrator_replicas_ready {float(number)}"
        url = f"http://{self.metrics['orchestrator']}/metrics"
        with httpx.Client(trust_env=False, timeout=5) as client:
            end = time.monotonic() + START_SECONDS
            while time.monotonic() < end:
                if wanted in client.get(url).text:
                    return
                time.sleep(0.1)
        raise AssertionError(f"never {number} engines")


@contextmanager
def traced_stack(folder: Path, index: Path) -> Iterator[TracedStack]:
    """A traced stack that is ready, and is stopped at the end whatever happens."""
    with running_collector() as collector:
        stack = TracedStack(folder, index, collector)
        try:
            stack.start_all()
            yield stack
        finally:
            stack.stop()
