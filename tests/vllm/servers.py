"""Starts `vllm serve` in the environment of `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.support.stack import free_ports

START_SECONDS = 400.0
"""Imports alone take half a minute on a busy machine."""

NAME = "demo"
"""Name under which the engines serve the model."""

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # By default, engines that start at once are bound to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "SMG_VLLM_SERVICER_WARMUP": "off",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VllmServer:
    """One process of `vllm serve`, by gRPC or HTTP."""

    def __init__(self, executable: Path, model: Path, log: Path, *flags: str) -> None:
        """Starts it; `flags` may contain `--grpc`."""
        [self.port] = free_ports(1)
        self.is_grpc = "--grpc" in flags
        scheme = "vllm+grpc" if self.is_grpc else "vllm+http"
        self.target = f"{scheme}://127.0.0.1:{self.port}"
        self.log = log
        command = [str(executable), "serve", str(model), "--served-model-name", NAME]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager"]
        command += ["--dtype", "float32", "--max-num-seqs", "16", "--max-model-len", "2048", *flags]
        # A small model writes white space without end where the form allows it.
        form = {"backend": "guidance", "disable_any_whitespace": True}
        command += ["--structured-outputs-config", json.dumps(form)]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **ENVIRONMENT},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def wait_ready(self) -> None:
        """Returns when it takes requests; fails with its log."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_ready():
                return
            time.sleep(0.5)
        raise AssertionError(f"vLLM is not ready:\n{self.log.read_text()[-8000:]}")

    def kill(self) -> None:
        """Kills the server and its engine processes at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(30)

    def _is_ready(self) -> bool:
        if not self.is_grpc:
            try:
                return httpx.get(f"http://{self.address}/health", timeout=2).status_code == 200
            except httpx.TransportError:
                return False
        with grpc.insecure_channel(self.address) as channel:
            try:
                health = health_pb2_grpc.HealthStub(channel)
                response = health.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def vllm_servers(
    executable: Path, model: Path, folder: Path, flags: Sequence[Sequence[str]]
) -> Iterator[list[VllmServer]]:
    """Ready servers, one for each entry of `flags`; kills them at the end."""
    servers = [
        VllmServer(executable, model, folder / f"vllm-{number}.log", *each)
        for number, each in enumerate(flags)
    ]
    try:
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


def offline_tokens(
    executable: Path, model: Path, log: Path, prompts: Sequence[Sequence[int]], max_tokens: int
) -> list[list[int]]:
    """Greedy tokens of vLLM's offline API."""
    script = Path(__file__).with_name("offline.py")
    out = log.with_suffix(".json")
    # Files, because the engine's own process outlives its parent and would hold pipes open.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(executable.with_name("python")), str(script), str(model), str(out)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        with process.stdin as stdin:
            stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}).encode())
        code = process.wait(START_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-4000:]
    tokens: list[list[int]] = json.loads(out.read_text())
    return tokens
