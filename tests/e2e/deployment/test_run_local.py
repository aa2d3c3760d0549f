"""`make run-local` in a terminal, stopped with Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest

from scripts.run_local import PORTS, addresses, port_problem
from tests.e2e.support.stack import ROOT


@pytest.mark.timeout(120)
def test_run_local_prints_a_working_command_and_stops_cleanly() -> None:
    """The printed curl command works; after Ctrl-C, make exits with 0 without a traceback."""
    base = free_base()
    environment = {
        **os.environ,
        "PORT_BASE": str(base),
        "CHAT_MODEL": "",
        "EMBEDDING_MODEL": "",
        "INFERENCE_KV_CACHE_TOKENS": "8192",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execvpe("make", ["make", "run-local"], environment)
    with no_process_left(process):
        output = read_until(terminal, "Press Ctrl-C to stop.", 100)
        found = re.search(r'curl -N -H "Accept: text/event-stream" "([^"]+)"', output)
        assert found, output
        assert found[1].startswith(f"http://localhost:{base}/")
        response = httpx.get(found[1], timeout=60, trust_env=False)
        assert "event: complete" in response.text
        os.write(terminal, b"\x03")
        output += read_until(terminal, None, 30)
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 0, output
        assert output.count("(rc=0)") == 4, output
        assert "Traceback" not in output


@contextmanager
def no_process_left(pid: int) -> Iterator[None]:
    """Kills the process and its descendants if the block fails."""
    try:
        yield
    except BaseException:
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
        raise


def run_local(**settings: str) -> tuple[int, list[str]]:
    """Exit code and output lines of a run that does not start."""
    environment = {
        **os.environ,
        "INFERENCE_FAKE_MODEL": "1",
        "CHAT_MODEL": "",
        "EMBEDDING_MODEL": "",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-m", "scripts.run_local"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.timeout(120)
def test_the_cause_of_a_failed_start_is_the_last_line() -> None:
    """The other services drain after it; their lines come before the cause."""
    code, lines = run_local(PORT_BASE=str(free_base()), GATEWAY_MAX_BODY_BYTES="0")
    assert code == 3
    assert lines[-1] == (
        "Weir stopped: gateway: gateway: cannot start, bad settings: GATEWAY_MAX_BODY_BYTES='0': "
        "Input should be greater than or equal to 1"
    )


def test_a_second_run_does_not_claim_the_first_ones_gateway() -> None:
    """It ends at once and names the port, the variable and the way out."""
    base = free_base()
    with socket.create_server(("127.0.0.1", base)):
        code, lines = run_local(PORT_BASE=str(base))
    assert code == 3
    assert lines == [
        f"Weir did not start: port {base} (GATEWAY_LISTEN) is used by another process; stop it, or "
        "use other ports: PORT_BASE=9000 make run-local"
    ]


def free_base() -> int:
    """The first of as many consecutive free ports as a run uses."""
    for base in range(21000 + os.getpid() % 5000, 32000, len(PORTS)):
        if not port_problem(addresses({"PORT_BASE": str(base)})):
            return base
    raise AssertionError("no ports are free")


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
