"""The script of `helm test`, run against the real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.support.stack import ROOT, Stack

pytestmark = pytest.mark.timeout(300)

SCRIPT = ROOT / "charts" / "weir" / "files" / "helm_test.py"


def run(stack: Stack, *arguments: str, timeout: str = "120") -> subprocess.CompletedProcess[str]:
    """Runs the script as the pod does, in isolated mode and with the standard library only."""
    command = [sys.executable, "-I", str(SCRIPT), f"--url={stack.url}", "--query=tracing"]
    command += [f"--timeout={timeout}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@contextmanager
def traces(*services: str) -> Iterator[tuple[str, list[str]]]:
    """Serves a trace as Tempo does, on the second request; yields its URL and the requested ids."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path.rpartition("/")[2])
            self.send_response(404 if len(requested) == 1 else 200)
            self.end_headers()
            names = ({"key": "service.name", "value": {"stringValue": s}} for s in services)
            batches = [{"resource": {"attributes": [name]}, "scopeSpans": []} for name in names]
            self.wfile.write(json.dumps({"batches": batches}).encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_all_checks_pass(stack: Stack) -> None:
    """Each kind of request, the disconnect of a client, and the trace."""
    with traces("gateway", "orchestrator", "tokenizer", "inference") as (url, requested):
        metrics = f"--engine-metrics={stack.metrics['inference']}"
        models = ("--model=demo", "--embedding-model=demo")
        done = run(stack, *models, metrics, f"--traces={url}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(lines) == [
        "ready",
        "search",
        "chat with demo",
        "completion with demo",
        "structured output with demo",
        "forced tool with demo",
        "response with demo",
        "message with demo",
        "embeddings with demo",
        "refusal",
        "disconnect",
        "trace",
    ]
    assert lines["disconnect"].startswith("sequence freed")
    assert requested[0] == requested[-1]
    assert len(requested[0]) == 32


def test_a_model_that_is_not_served_fails(stack: Stack) -> None:
    """The log names the model."""
    done = run(stack, "--model=demo", "--model=other", timeout="2")
    assert done.returncode == 1
    assert "no engine is ready for other" in done.stderr


def test_a_sequence_that_is_not_freed_fails(stack: Stack) -> None:
    """The check fails if the engine's count of aborts does not rise."""
    # The orchestrator's metrics do not contain the engine's counters.
    done = run(
        stack, "--model=demo", f"--engine-metrics={stack.metrics['orchestrator']}", timeout="2"
    )
    assert done.returncode == 1
    assert "the sequence of the disconnected client is freed: not within 2 s" in done.stderr


def test_a_trace_without_a_service_fails(stack: Stack) -> None:
    """The log lists the services with spans."""
    with traces("gateway", "tokenizer") as (url, _):
        done = run(stack, "--model=demo", f"--traces={url}", timeout="2")
    assert done.returncode == 1
    assert "spans of gateway, tokenizer so far" in done.stderr
