"""The four processes with a second engine and a gateway with a short timeout, all traced."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.support.stack import Stack, free_ports
from tests.e2e.support.tracing.collector import Collector, running_collector

MAX_CONCURRENT = 2
SHORT_TIMEOUT_SECONDS = 1.0
START_SECONDS = 240.0
"""Time to start two engines, which both load torch, on a busy machine."""


class TracedStack(Stack):
    """A stack that exports its spans to `collector`."""

    def __init__(self, folder: Path, index: Path, collector: Collector) -> None:
        ports = [f"127.0.0.1:{port}" for port in free_ports(5)]
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_TRACES_SAMPLER": "parentbased_always_on",
            "ORCHESTRATOR_MAX_CONCURRENT_REQUESTS": str(MAX_CONCURRENT),
            # Two engines share one small machine: more threads would only compete.
            "INFERENCE_THREADS": "1",
            # Native kernels finish a search in 0.1 s, of which the RPCs alone take 5 %.
            "INFERENCE_KERNELS": "torch",
            "INFERENCE_MAX_NUM_SEQS": "4",
            # The minimum, so that a long prompt is computed in many steps.
            "INFERENCE_MAX_NUM_BATCHED_TOKENS": "16",
            "INFERENCE_TRACED_STEPS": "4",
        }
        super().__init__(folder, index, settings)
        self.collector = collector
        self.addresses |= {"inference-2": ports[0], "short-timeout": ports[1]}
        self.metrics |= {"inference-2": ports[2], "short-timeout": ports[3]}
        engines = ",".join(self.addresses[name] for name in ("inference", "inference-2"))
        self._environment["INFERENCE_HOST"] = engines

    def start_all(self) -> None:
        """Starts all processes and waits until both engines serve."""
        self.start()
        self.start_as("inference-2", "inference")
        seconds = str(SHORT_TIMEOUT_SECONDS)
        self.start_as("short-timeout", "gateway", "--request-timeout-seconds", seconds)
        self.wait_ready(START_SECONDS)
        self.wait_engines(2)

    def wait_engines(self, number: int) -> None:
        """Waits until the orchestrator has `number` ready engines."""
        wanted = f"orchestrator_replicas_ready {float(number)}"
        url = f"http://{self.metrics['orchestrator']}/metrics"
        with httpx.Client(trust_env=False, timeout=5) as client:
            end = time.monotonic() + START_SECONDS
            while time.monotonic() < end:
                if wanted in client.get(url).text:
                    return
                time.sleep(0.1)
        raise AssertionError(f"the orchestrator never had {number} ready engines")


@contextmanager
def traced_stack(folder: Path, index: Path) -> Iterator[TracedStack]:
    """Yields a ready traced stack; always stops it at the end."""
    with running_collector() as collector:
        stack = TracedStack(folder, index, collector)
        try:
            stack.start_all()
            yield stack
        finally:
            stack.stop()
