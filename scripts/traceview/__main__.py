"""`python -m scripts.traceview`: receives traces over OTLP and shows them, until a signal."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time

from mesh.process.settings import STARTUP_FAILURE
from mesh.rpc.targets import at_port
from scripts.traceview.otlp import grpc_receiver
from scripts.traceview.store import Store
from scripts.traceview.terminal import Printer
from scripts.traceview.web import web_server

FLUSH_SECONDS = 2.0
"""Time to keep receiving after a signal.

Services that stop at the same time export their last spans, and would retry without a receiver.
"""


def main() -> int:
    """Runs until a signal; returns the exit code."""
    options = _options()
    store = Store(options.keep)
    write = sys.stdout.write
    printer = Printer(store, write, sys.stdout.isatty()) if options.terminal else None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with (
            grpc_receiver(options.grpc_listen, store.add) as grpc_port,
            web_server(options.listen, store) as port,
        ):
            _announce(options.listen, port, options.grpc_listen, grpc_port)
            while not stop.wait(0.5):
                if printer is not None:
                    printer.print_complete()
                    sys.stdout.flush()
            time.sleep(FLUSH_SECONDS)
    except OSError as error:
        print(f"traceview: cannot start: {error}", file=sys.stderr)
        return STARTUP_FAILURE
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts.traceview", description=__doc__)
    parser.add_argument(
        "--listen",
        default="127.0.0.1:4318",
        help="listen address of the web page and of OTLP over HTTP (default: %(default)s)",
    )
    parser.add_argument(
        "--grpc-listen",
        default="127.0.0.1:4317",
        help="listen address of OTLP over gRPC (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=2000,
        help="maximum traces in memory (default: %(default)s)",
    )
    parser.add_argument(
        "--terminal", action="store_true", help="print each complete trace as a waterfall"
    )
    options = parser.parse_args()
    if options.keep < 1:
        parser.error(f"--keep must be at least 1, given {options.keep}")
    return options


def _announce(listen: str, port: int, grpc_listen: str, grpc_port: int) -> None:
    print(
        f"traces at http://{at_port(listen, port)}, OTLP over HTTP there, OTLP over gRPC at "
        f"http://{at_port(grpc_listen, grpc_port)}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
