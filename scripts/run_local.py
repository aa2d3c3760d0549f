"""Starts the four services of the Procfile on loopback, and prints when they are ready.

OBSERVABILITY=1 also starts the trace view, and exports the services' traces to it.

Ctrl-C stops all processes; the exit code is 0 if all exited with 0.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from honcho.environ import parse_procfile
from honcho.manager import Manager

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / ".run" / "corpus.sqlite3"
CORPUS = ROOT / "examples" / "corpus"
DEMO_MODEL = ROOT / "models" / "demo"
SERVICES = ("TOKENIZER", "INFERENCE", "ORCHESTRATOR", "GATEWAY")
READY_TIMEOUT_SECONDS = 600.0
"""Includes the download of a model from the hub."""


def main() -> int:
    """Runs until a signal, or until a service exits; returns the exit code."""
    os.chdir(ROOT)
    INDEX.parent.mkdir(exist_ok=True)
    manager = Manager()
    environment = service_environment(os.environ.get("MODEL") or str(DEMO_MODEL))
    environment = {**trace_environment(), **environment} if observed() else environment
    for name, command in parse_procfile((ROOT / "Procfile").read_text()).processes.items():
        # exec replaces the shell, so that signals reach the service.
        manager.add_process(name, f"exec {command}", env=environment)
    traces = trace_view_address() if observed() else ""
    if traces:
        manager.add_process("traceview", f"exec {trace_view_command()}", env=environment)
    address = environment.get("GATEWAY_LISTEN", "127.0.0.1:8080")
    threading.Thread(target=announce_ready, args=(address, traces), daemon=True).start()
    with own_process_group():
        build_index()
        manager.loop()
    return exit_code(manager)


def service_environment(model: str) -> dict[str, str]:
    """Environment of the services: `model`, the search index, and text logs."""
    environment = {
        "TOKENIZER_MODEL": model,
        "INFERENCE_MODEL": model,
        "ORCHESTRATOR_INDEX": str(INDEX),
        "PYTHON": sys.executable,
        "PYTHONUNBUFFERED": "1",
        # At its default level gRPC logs every closed connection.
        "GRPC_VERBOSITY": "ERROR",
        **{f"{service}_LOG_FORMAT": "text" for service in SERVICES},
        # Loopback connections must not use the HTTP proxies of the shell.
        "no_proxy": "127.0.0.1,localhost",
    }
    return {**environment, **os.environ, "PYTHON": sys.executable}


def observed() -> bool:
    """True if OBSERVABILITY enables the trace view."""
    return os.environ.get("OBSERVABILITY", "") not in ("", "0")


def trace_view_address() -> str:
    """HOST:PORT of the trace view's page."""
    return os.environ.get("TRACEVIEW_LISTEN", "127.0.0.1:4318")


def trace_view_receiver() -> str:
    """HOST:PORT of the trace view's OTLP/gRPC receiver."""
    return os.environ.get("TRACEVIEW_GRPC_LISTEN", "127.0.0.1:4317")


def trace_view_command() -> str:
    """The command that starts the trace view."""
    addresses = f"--listen {trace_view_address()} --grpc-listen {trace_view_receiver()}"
    return f"{sys.executable} -m scripts.traceview {addresses}"


def trace_environment() -> dict[str, str]:
    """Exports traces to the trace view without delay, and links to it from the search page."""
    page = trace_view_address().replace("127.0.0.1", "localhost")
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{trace_view_receiver()}",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
        "OTEL_TRACES_SAMPLER": os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on"),
        "GATEWAY_TRACE_URL_TEMPLATE": f"http://{page}/trace/{{trace_id}}",
    }


def build_index() -> None:
    """Updates the search index; fast if no document has changed."""
    command = [sys.executable, "-m", "orchestrator.index", str(CORPUS), "--out", str(INDEX)]
    status = os.spawnv(os.P_WAIT, sys.executable, command)
    if status != 0:
        raise SystemExit(f"cannot index {CORPUS.relative_to(ROOT)}")


_WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens local addresses, whatever proxy the environment names."""


def announce_ready(address: str, traces: str) -> None:
    """Waits until the gateway is ready, then prints its URL and an example command.

    `traces` is the address of the trace view; empty: none.
    """
    started = time.monotonic()
    while time.monotonic() - started < READY_TIMEOUT_SECONDS:
        try:
            with _WITHOUT_PROXY.open(f"http://{address}/readyz", timeout=2):
                break
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    else:
        print(f"\nWeir is not ready after {READY_TIMEOUT_SECONDS:.0f} s; see the log above\n")
        return
    url = f"http://{address.replace('127.0.0.1', 'localhost')}"
    seen = f"Traces: http://{traces.replace('127.0.0.1', 'localhost')}\n\n" if traces else ""
    print(
        f"\nWeir is ready after {time.monotonic() - started:.1f} s: {url}\n\n"
        f'  curl -N -H "Accept: text/event-stream" '
        f'"{url}/api/v1/search?query=AI&streaming=true"\n\n'
        f"{seen}"
        f"Press Ctrl-C to stop.\n",
        flush=True,
    )


@contextmanager
def own_process_group() -> Iterator[None]:
    """Moves this process to the terminal's foreground group, so that Ctrl-C does not reach make.

    Otherwise make reports an interrupt error after a clean shutdown.
    """
    if not sys.stdin.isatty() or os.getpgrp() == os.getpid():
        yield
        return
    parent_group = os.getpgrp()
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    try:
        yield
    finally:
        os.tcsetpgrp(sys.stdin.fileno(), parent_group)


def exit_code(manager: Manager) -> int:
    """0 if every service exited with 0, else the first nonzero code."""
    codes = [process.get("returncode") for process in manager._processes.values()]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
