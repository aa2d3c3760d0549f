"""`OBSERVABILITY=1`: a local run with a trace viewer, without downloads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.support.stack import ROOT, SERVICES, free_ports


@pytest.mark.timeout(300)
def test_a_local_run_has_a_trace_viewer(tmp_path: Path) -> None:
    """The viewer has the trace of a search, the search page links to it, and all exit cleanly."""
    ports = [f"127.0.0.1:{port}" for port in free_ports(10)]
    addresses, metrics = ports[:4], ports[4:8]
    view, receiver = ports[8:]
    environment = {
        **os.environ,
        **{f"{n.upper()}_LISTEN": a for n, a in zip(SERVICES, addresses, strict=True)},
        **{f"{n.upper()}_METRICS_LISTEN": a for n, a in zip(SERVICES, metrics, strict=True)},
        **{f"{n.upper()}_HOST": a for n, a in zip(SERVICES, addresses, strict=True)},
        "INFERENCE_KV_CACHE_TOKENS": "8192",
        "CHAT_MODEL": "",
        "EMBEDDING_MODEL": "",
        "OBSERVABILITY": "1",
        "TRACEVIEW_LISTEN": view,
        "TRACEVIEW_GRPC_LISTEN": receiver,
    }
    gateway = f"http://{addresses[SERVICES.index('gateway')]}"
    command = [sys.executable, "-m", "scripts.run_local"]
    output = tmp_path / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(output, "Press Ctrl-C to stop.", process)
            with httpx.Client(timeout=60, trust_env=False) as client:
                response = client.get(f"{gateway}/api/v1/search", params={"query": "AI"})
                trace_id = response.headers["x-trace-id"]
                spans = wait_trace(client, f"http://{view}/api/traces/{trace_id}")
                page = client.get(gateway).text
                listed = client.get(f"http://{view}/api/traces").json()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    text = output.read_text()
    assert f"Traces: http://{view.replace('127.0.0.1', 'localhost')}" in text
    assert f"http://{view.replace('127.0.0.1', 'localhost')}/trace/{{trace_id}}" in page
    assert "GET /api/v1/search" in str(listed)
    assert "/v1/models" not in str(listed), "the start asks for readiness without traces"
    assert {span["service"] for span in spans} == set(SERVICES)
    assert spans[0]["name"] == "GET /api/v1/search"
    assert {"retrieval", "queue", "prefill", "decode"} <= {span["name"] for span in spans}
    assert "traceview stopped (rc=0)" in text
    assert process.returncode == 0, text


def wait_for(output: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    """Waits until `text` is in the output."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        if text in output.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(output.read_text())


def wait_trace(client: httpx.Client, url: str) -> list[dict[str, Any]]:
    """Waits until the trace has spans of all services; returns its spans."""
    end = time.monotonic() + 20
    spans: list[dict[str, Any]] = []
    while time.monotonic() < end:
        response = client.get(url)
        spans = response.json()["spans"] if response.is_success else []
        if {span["service"] for span in spans} == set(SERVICES) and spans[0]["kind"] == "server":
            break
        time.sleep(0.1)
    return spans
