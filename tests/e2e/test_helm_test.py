"""What `helm test` runs, against the real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.stack import ROOT, Stack

pytestmark = pytest.mark.timeout(300)

SCRIPT = ROOT / "charts" / "weir" / "files" / "helm_test.py"


def run(stack: Stack, *arguments: str, timeout: str = "120") -> subprocess.CompletedProcess[str]:
    """Runs the script as the pod does, without anything that is installed."""
    command = [sys.executable, "-I", str(SCRIPT), f"--url={stack.url}", "--query=tracing"]
    command += [f"--timeout={timeout}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@contextmanager
def traces(*services: str) -> Iterator[tuple[str, list[str]]]:
    """A URL that answers as Tempo does, the trace on the second try; and the ids asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path.rpartition("/")[2])
            self.send_response(404 if len(asked) == 1 else 200)
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
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_all_of_it_passes(stack: Stack) -> None:
    """Search, chat, a disconnected client whose slot is freed, and the trace."""
    with traces("gateway", "orchestrator", "tokenizer", "inference") as (url, asked):
        metrics = f"--engine-metrics={stack.metrics['inference']}"
        done = run(stack, "--model=demo", metrics, f"--traces={url}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(lines) == ["ready", "search", "chat with demo", "disconnect", "trace"]
    assert lines["disconnect"].startswith("slot free")
    assert asked[0] == asked[-1]
    assert len(asked[0]) == 32


def test_a_model_that_is_not_served_fails(stack: Stack) -> None:
    """The log says which."""
    done = run(stack, "--model=demo", "--model=other", timeout="2")
    assert done.returncode == 1
    assert "no engine is ready for other" in done.stderr


def test_a_slot_that_stays_taken_fails(stack: Stack) -> None:
    """An engine that counts no abort has not let the sequence go."""
    # The orchestrator's metrics have none of the engine's counters.
    done = run(
        stack, "--model=demo", f"--engine-metrics={stack.metrics['orchestrator']}", timeout="2"
    )
    assert done.returncode == 1
    assert "the slot of a client that left is free: not within 2 s" in done.stderr


def test_a_trace_that_lacks_a_service_fails(stack: Stack) -> None:
    """It says whose spans there are."""
    with traces("gateway", "tokenizer") as (url, _):
        done = run(stack, "--model=demo", f"--traces={url}", timeout="2")
    assert done.returncode == 1
    assert "spans of gateway, tokenizer so far" in done.stderr
