"""Runs probes as the kubelet does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc.aio
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

Probe = dict[str, Any]


class ProbeFailedError(AssertionError):
    """The probe failed as often as its threshold, or the container exited."""


async def passes(probe: Probe, host: str, ports: dict[str, int]) -> bool:
    """Whether one attempt succeeds within the probe's timeout."""
    if "grpc" in probe:
        return await _grpc(probe["grpc"], host, probe["timeoutSeconds"])
    return await _http(probe["httpGet"], host, ports, probe["timeoutSeconds"])


async def wait_until_passes(
    probe: Probe, host: str, ports: dict[str, int], alive: Callable[[], bool]
) -> None:
    """Repeats the probe up to its failure threshold. Raises ProbeFailedError.

    A container that exits is an error, too; a kubelet would restart it.
    """
    for _ in range(probe["failureThreshold"]):
        if await passes(probe, host, ports):
            return
        if not alive():
            raise ProbeFailedError("the container has exited")
        await asyncio.sleep(probe["periodSeconds"])
    raise ProbeFailedError(f"failed {probe['failureThreshold']} times: {probe}")


async def _grpc(check: dict[str, Any], host: str, timeout: float) -> bool:
    async with grpc.aio.insecure_channel(f"{host}:{check['port']}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=check.get("service", ""))
        try:
            answer = await stub.Check(request, timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _http(check: dict[str, Any], host: str, ports: dict[str, int], timeout: float) -> bool:
    port = ports.get(check["port"], check["port"])
    async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
        try:
            response = await client.get(f"http://{host}:{port}{check['path']}")
        except httpx.HTTPError:
            return False
        return 200 <= response.status_code < 400
