"""`make run-local` in a terminal, stopped with Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import time

import httpx
import pytest

from tests.e2e.support.stack import ROOT, SERVICES, free_ports


@pytest.mark.timeout(120)
def test_run_local_prints_a_working_command_and_stops_cleanly() -> None:
    """The printed curl command works; after Ctrl-C, make exits with 0 without a traceback."""
    addresses = dict(zip(SERVICES, (f"127.0.0.1:{port}" for port in free_ports(4)), strict=True))
    metrics = dict(zip(SERVICES, (f"127.0.0.1:{port}" for port in free_ports(4)), strict=True))
    environment = {
        **os.environ,
        **{f"{name.upper()}_LISTEN": address for name, address in addresses.items()},
        **{f"{name.upper()}_METRICS_LISTEN": address for name, address in metrics.items()},
        **{f"{name.upper()}_HOST": addresses[name] for name in SERVICES if name != "gateway"},
        "INFERENCE_KV_CACHE_TOKENS": "8192",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execvpe("make", ["make", "run-local"], environment)
    output = read_until(terminal, "Press Ctrl-C to stop.", 100)
    found = re.search(r'curl -N -H "Accept: text/event-stream" "([^"]+)"', output)
    assert found, output
    response = httpx.get(found[1], timeout=60, trust_env=False)
    assert "event: complete" in response.text
    os.write(terminal, b"\x03")
    output += read_until(terminal, None, 30)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, output
    assert output.count("(rc=0)") == 4, output
    assert "Traceback" not in output


def read_until(terminal: int, text: str | None, timeout: float) -> str:
    """The terminal's output up to `text`, or to the end if `text` is None."""
    shown, end = "", time.monotonic() + timeout
    while time.monotonic() < end and (text is None or text not in shown):
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                return shown
            if not piece:
                return shown
            shown += piece.decode(errors="replace")
    if text is not None and text not in shown:
        raise AssertionError(f"{text!r} was not shown within {timeout} s:\n{shown}")
    return shown
