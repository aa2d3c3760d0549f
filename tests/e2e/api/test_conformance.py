"""The conformance suite against the four processes, and against a server that fails it."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading

import pytest

from tests.conformance.__main__ import run, table
from tests.conformance.checks import CHECKS, keep_alive
from tests.e2e.support.stack import ROOT, Stack

pytestmark = pytest.mark.timeout(600)


async def test_every_check_passes(stack: Stack) -> None:
    """No check fails or is skipped."""
    results = await run(stack.url, "", checks=[each for each in CHECKS if each is not keep_alive])
    # Keep-alive comments are sent so often that a prefill is long enough for one. So are they
    # before a refusal, which then has the status 200.
    with stack.another_gateway("--keep-alive-seconds", "0.002") as url:
        results += await run(url, "", checks=[keep_alive])
    assert {result.outcome for result in results} == {"ok"}, table(results)


class AlwaysOk(http.server.BaseHTTPRequestHandler):
    """Answers every request with status 200 and the same body."""

    def do_GET(self) -> None:
        """Sends the body."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object": "list", "data": [{"id": "always-ok"}], "choices": []}')

    def do_POST(self) -> None:
        """Reads the request's body and sends the same body as for GET."""
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def test_the_command_reports_failed_checks() -> None:
    """The table lists the failed checks, and the exit code is 1."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), AlwaysOk) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        command = [sys.executable, "-m", "tests.conformance", "--base-url", url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    lines = [line for line in done.stdout.splitlines() if "  ok " in line]
    # At most two checks can pass with the same status 200 for every request.
    assert len(lines) <= 2, done.stdout
