"""The conformance suite against the four processes, and against a server that is none."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading

import pytest

from tests.conformance.__main__ import run, table
from tests.e2e.stack import ROOT, Stack

pytestmark = pytest.mark.timeout(600)


async def test_it_passes_whole(stack: Stack) -> None:
    """No check fails, and none is skipped."""
    # Comment lines come after so short a silence that a prefill is one.
    with stack.another_gateway("--keep-alive-seconds", "0.002") as url:
        results = await run(url, "")
    assert {result.outcome for result in results} == {"ok"}, table(results)


class Liar(http.server.BaseHTTPRequestHandler):
    """Says yes to everything."""

    def do_GET(self) -> None:
        """The same to all."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object": "list", "data": [{"id": "liar"}], "choices": []}')

    def do_POST(self) -> None:
        """The same to all."""
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_the_command_finds_a_server_out() -> None:
    """The table names what fails, and the exit code is 1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        command = [sys.executable, "-m", "tests.conformance", "--base-url", url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "  ok " in line]
    # What a server can pass that gives the same 200 to everything.
    assert len(lines) <= 2, done.stdout
