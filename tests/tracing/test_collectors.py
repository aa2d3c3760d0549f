"""Collectors that do not answer."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest

from mesh.observability.telemetry import SHUTDOWN_LIMIT_S
from tests.e2e.support.tracing.collector import Collector
from tests.tracing.conftest import (
    COMPLETIONS,
    body,
    fake_stack,
)

pytestmark = pytest.mark.timeout(600)

NUM_REQUESTS = 50


@pytest.mark.parametrize("answers", [True, False])
async def test_a_collector_that_does_not_answer(
    tmp_path: Path, client: httpx.AsyncClient, answers: bool
) -> None:
    """One that is not there, or that accepts connections and is silent: no request notices."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = silent.getsockname()
        if not answers:
            silent.close()
        collector = Collector(f"http://{address[0]}:{address[1]}")
        speed = {"INFERENCE_FAKE_TOKENS_PER_SECOND": "1000"}
        with fake_stack(tmp_path, collector, speed) as stack:
            headers = {"x-weir-trace": "1"}
            for _ in range(NUM_REQUESTS):
                response = await client.post(
                    f"{stack.url}{COMPLETIONS}", json=body(0.01, 1000), headers=headers
                )
                assert response.status_code == 200
            began = time.monotonic()
            codes = await asyncio.to_thread(stack.stop)
            took = time.monotonic() - began
            logs = " ".join(stack.log(name).read_text() for name in stack.processes)
    assert set(codes.values()) == {0}
    assert took < SHUTDOWN_LIMIT_S * len(codes) + 60
    assert "Traceback" not in logs
