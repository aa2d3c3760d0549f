"""`python -m tests.chaos.launch SERVICE …`: starts a service with a fault that a test controls.

CHAOS_KEEPALIVE_SECONDS replaces the interval and the timeout of keepalive pings. While the folder
CHAOS_HANG_FOLDER has a file named as an engine's address, the steps of the engine do not return.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from pathlib import Path

from mesh.rpc import transport
from mesh.rpc.polling import use_epoll1_engine


def hang_while(file: Path) -> None:
    """Makes each step of the engine wait until `file` does not exist."""
    from inference.engine.step_loop import StepLoop

    schedule = StepLoop._schedule

    def wait_and_schedule(loop: StepLoop) -> object:
        while file.exists():
            time.sleep(0.05)
        return schedule(loop)

    StepLoop._schedule = wait_and_schedule  # type: ignore[method-assign,assignment]


def main() -> None:
    """The command line."""
    service, *arguments = sys.argv[1:]
    use_epoll1_engine()
    if seconds := os.environ.get("CHAOS_KEEPALIVE_SECONDS"):
        for name in ("KEEPALIVE_SECONDS", "KEEPALIVE_TIMEOUT_SECONDS"):
            setattr(transport, name, float(seconds))
    if service == "inference" and (folder := os.environ.get("CHAOS_HANG_FOLDER")):
        hang_while(Path(folder) / arguments[arguments.index("--listen") + 1])
    sys.argv = [service, *arguments]
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
