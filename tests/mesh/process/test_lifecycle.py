"""A service from start to exit, run as a real process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection

import pytest

from tests.e2e.support.stack import free_ports

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from mesh.errors import ErrorKind, MeshError
from mesh.process.lifecycle import StartupError, run
from mesh.process.settings import ServiceSettings, load

mode = sys.argv.pop(1)

class Service:
    servicers = ()
    called_channels = tuple
    async def watch_ready(self, set_ready):
        await set_ready(True)
        if mode.startswith("watch fails"):
            raise RuntimeError("lost the model")
        await asyncio.Event().wait()

async def background():
    await asyncio.sleep(0.05)
    raise RuntimeError("background failed")

@asynccontextmanager
async def application():
    if mode == "startup error":
        raise StartupError("set THIS to that")
    if mode == "mesh error":
        raise MeshError(ErrorKind.UNAVAILABLE, "no upstream")
    print("loading", flush=True)
    try:
        if mode == "slow load":
            await asyncio.sleep(60)
        async with asyncio.TaskGroup() as tasks:
            if mode == "task fails":
                tasks.create_task(background())
            yield Service()
            print("leaving", flush=True)
            if mode.endswith("slow stop"):
                await asyncio.sleep(60)
    finally:
        print("left", flush=True)

class BakerySettings(ServiceSettings):
    model_config = {"env_prefix": "BAKERY_"}

run("bakery", load(BakerySettings, "bakery"), application)
"""


class Process(subprocess.Popen[str]):
    """The program above, as a child process."""

    def wait_for(self, text: str) -> None:
        """Read the output up to a line with `text`."""
        stream = self.stdout if text in ("loading", "leaving") else self.stderr
        assert stream is not None
        for line in stream:
            if text in line:
                return
        raise AssertionError(f"ended without {text!r}")


@contextmanager
def program(mode: str, *arguments: str) -> Iterator[Process]:
    command = [sys.executable, "-c", PROGRAM, mode, "--metrics-listen", "127.0.0.1:0", *arguments]
    pipe = subprocess.PIPE
    with Process(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_with_0(number: signal.Signals) -> None:
    """The application is left in order, and each step is logged."""
    with program("serve") as process:
        process.wait_for("listening")
        process.send_signal(number)
        out, log = process.communicate(timeout=10)
    assert process.returncode == 0, log
    assert out == "loading\nleaving\nleft\n"
    steps = [log.index(step) for step in ("signal received, draining", "drained", "stopped")]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("mode", "reason"), [("startup error", "set THIS to that"), ("mesh error", "no upstream")]
)
def test_a_failure_to_start_exits_with_3(mode: str, reason: str) -> None:
    """The reason is one log line, without a traceback."""
    with program(mode) as process:
        _, log = process.communicate(timeout=10)
    assert process.returncode == 3
    assert reason in log
    assert "Traceback" not in log


def test_a_taken_port_is_a_failure_to_start() -> None:
    """The message names the address; the application is left all the same."""
    with program("serve", "--listen", "192.0.2.1:1") as process:
        out, log = process.communicate(timeout=10)
    assert process.returncode == 3
    assert (
        "cannot listen on 192.0.2.1:1: Cannot assign requested address; set BAKERY_LISTEN to" in log
    )
    assert out.endswith("left\n")


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    """The last line has the port, the variable, and what to do."""
    with ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        started = [
            (name, stack.enter_context(program("serve", f"--{name}-listen", f"127.0.0.1:{port}")))
            for name in ("metrics", "health")
        ]
        started.append(("", stack.enter_context(program("serve", "--listen", f"127.0.0.1:{port}"))))
        for name, process in started:
            _, log = process.communicate(timeout=20)
            assert process.returncode == 3
            variable = f"BAKERY_{name.upper()}_LISTEN".replace("__", "_")
            assert log.splitlines()[-1].endswith(
                f'"cannot listen on 127.0.0.1:{port}: Address already in use; stop the process '
                f'that uses port {port}, or set {variable} to another port"}}'
            )


def test_an_unknown_variable_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has its name and the most similar setting; the service starts."""
    monkeypatch.setenv("BAKERY_LOG_FORMT", "text")
    with program("startup error") as process:
        _, log = process.communicate(timeout=10)
    [warning] = [
        json.loads(line) for line in log.splitlines() if "unknown variable ignored" in line
    ]
    assert warning["severity"] == "WARNING"
    assert (warning["variable"], warning["similar"]) == ("BAKERY_LOG_FORMT", "BAKERY_LOG_FORMAT")


def test_a_signal_while_loading_ends_the_load() -> None:
    """The process does not wait until the model is loaded."""
    with program("slow load") as process:
        process.wait_for("loading")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, log = process.communicate(timeout=10)
    assert process.returncode == 0, log
    assert time.monotonic() - started < 5
    assert out == "left\n"


def test_a_service_that_fails_and_cannot_end_is_not_live() -> None:
    """So that the kubelet restarts it; its loop still responds."""
    [port] = free_ports(1)
    with program("watch fails, slow stop", "--metrics-listen", f"127.0.0.1:{port}") as process:
        process.wait_for("drained")
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 503
        connection.close()


def test_a_second_signal_kills_the_process() -> None:
    """Hanging tasks do not delay it; the exit status is the signal."""
    with program("slow stop") as process:
        process.wait_for("listening")
        process.send_signal(signal.SIGTERM)
        process.wait_for("drained")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("mode", "reason"), [("task fails", "background failed"), ("watch fails", "lost the model")]
)
def test_a_failure_in_the_application_ends_the_process(mode: str, reason: str) -> None:
    """A service with a failed component exits, so that it is restarted."""
    with program(mode) as process:
        out, log = process.communicate(timeout=10)
    assert process.returncode == 1
    assert reason in log
    assert out.endswith("left\n")
