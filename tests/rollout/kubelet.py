"""Runs pods of rendered manifests as processes: probes, preStop, SIGTERM and SIGKILL as a kubelet.

Each pod has an address of its own in 127.0.0.0/8, so that all of them use the chart's ports.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

Manifest = dict[str, Any]

START_SECONDS = 90.0
"""Time for a pod to start, on a busy machine; the chart's own limit is longer."""

_numbers = itertools.count(1)


class Pod:
    """One pod of a Deployment, from its creation to its end."""

    def __init__(
        self,
        deployment: Manifest,
        code: Path,
        folder: Path,
        settings: Mapping[str, str],
        on_change: Callable[[Pod], None],
        node: str = "",
    ) -> None:
        """Runs the service of `code` on `node`.

        `on_change` is called when `ready`, `serving` or `ended` changes.
        """
        self.node = node
        number = next(_numbers)
        self.address = f"127.10.{number // 250}.{number % 250 + 1}"
        self.spec: Manifest = deployment["spec"]["template"]["spec"]
        self.container: Manifest = self.spec["containers"][0]
        self.service: str = self.container["name"]
        self.ready = False
        self.serving = False
        """Whether the readiness probe succeeds, also while the pod terminates."""
        self.terminating = False
        self.ended = False
        self.killed = False
        """Whether the kubelet had to kill it at the end of its grace period."""
        self._on_change = on_change
        self._code = code
        self._log = folder / f"{self.service}-{number}.log"
        self._settings = settings
        self._stopping: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run(), name=f"pod {self.service} {number}")

    def delete(self) -> None:
        """Terminate the pod: preStop, SIGTERM, and SIGKILL at the end of the grace period."""
        if not self.terminating:
            self.terminating = True
            self._on_change(self)
            self._stopping = asyncio.create_task(self._terminate(), name=f"stop {self.address}")

    def kill(self) -> None:
        """SIGKILL, as the kernel does when memory is short; the container is started again."""
        self._process.kill()

    async def wait_ended(self) -> None:
        """Wait for the end of the pod after `delete`."""
        await self._task

    @property
    def log(self) -> str:
        """All that the process has logged."""
        return self._log.read_text()

    async def _run(self) -> None:
        try:
            while not self.terminating:
                await self._start()
                probing = asyncio.create_task(self._probe(), name=f"probe {self.address}")
                try:
                    await self._process.wait()
                finally:
                    probing.cancel()
                    self._set_ready(False)
                if not self.terminating:
                    await asyncio.sleep(0.1)
        finally:
            self._set_ready(False)
            self.ended = True
            self._on_change(self)

    async def _start(self) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
            **{each["name"]: each["value"] for each in self.container["env"] if "value" in each},
            "PYTHONPATH": str(self._code),
            "TMPDIR": "/tmp",
            "GRPC_VERBOSITY": "NONE",
            **self._settings,
        }
        for name, value in environment.items():
            if name.endswith("_LISTEN") and value:
                environment[name] = f"{self.address}:{value.rpartition(':')[2]}"
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.service,
                *self.container.get("args", ()),
                cwd=self._code,
                env=environment,
                stdout=log,
                stderr=log,
            )

    async def _probe(self) -> None:
        """The startup probe until it succeeds once, then the readiness probe."""
        startup, readiness = self.container["startupProbe"], self.container["readinessProbe"]
        end = time.monotonic() + START_SECONDS
        while not await self._succeeds(startup):
            assert time.monotonic() < end, f"{self.service} does not start: {self.log[-2000:]}"
            await asyncio.sleep(startup["periodSeconds"])
        failures = 0
        while True:
            if await self._succeeds(readiness):
                failures = 0
                self._set_ready(True)
            else:
                failures += 1
                if failures >= readiness["failureThreshold"]:
                    self._set_ready(False)
            await asyncio.sleep(readiness["periodSeconds"])

    async def _succeeds(self, probe: Manifest) -> bool:
        timeout = probe["timeoutSeconds"]
        try:
            async with asyncio.timeout(timeout):
                if "grpc" in probe:
                    return await self._serves(probe["grpc"], timeout)
                return await self._answers(probe["httpGet"])
        except (TimeoutError, grpc.aio.AioRpcError, httpx.HTTPError):
            return False

    async def _serves(self, probe: Manifest, timeout: float) -> bool:
        async with grpc.aio.insecure_channel(f"{self.address}:{probe['port']}") as channel:
            stub: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=probe.get("service", ""))
            response = await stub.Check(request, timeout=timeout)
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _answers(self, probe: Manifest) -> bool:
        url = f"http://{self.address}:{self.port(probe['port'])}{probe['path']}"
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            return (await client.get(url, headers={"host": "localhost"})).status_code == 200

    def port(self, name: str) -> int:
        """The number of a named port of the container."""
        return int(next(p["containerPort"] for p in self.container["ports"] if p["name"] == name))

    def _set_ready(self, ready: bool) -> None:
        serving, ready = ready, ready and not self.terminating
        if (serving, ready) != (self.serving, self.ready):
            self.serving, self.ready = serving, ready
            self._on_change(self)

    async def _terminate(self) -> None:
        end = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        hook = self.container.get("lifecycle", {}).get("preStop", {})
        await asyncio.sleep(hook.get("sleep", {}).get("seconds", 0))
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(end - time.monotonic()):
                await self._process.wait()
        except TimeoutError:
            self.killed = True
            self._process.kill()
