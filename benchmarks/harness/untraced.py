"""Runs a service whose spans can be taken out while it runs: what tracing is compared with.

    python -m benchmarks.harness.untraced SWITCH gateway --listen 127.0.0.1:8080

SWITCH is a file of one byte. While it is 0 no span is made, and nothing is done in its place.
One process serves both ways: two of the same code differ by some percent for as long as they live.
"""

from __future__ import annotations

import mmap
import runpy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span

from mesh.observability import telemetry, tracing

_NO_SPAN = nullcontext(INVALID_SPAN)


def _no_span(*args: Any, **options: Any) -> AbstractContextManager[Span]:
    return _NO_SPAN


def _nothing(*args: Any, **options: Any) -> bool:
    return False


class _NoClientSpan:
    def __init__(self, *args: Any, **options: Any) -> None:
        self.complete = False
        self.error: object = None

    def __enter__(self) -> _NoClientSpan:
        return self

    def __exit__(self, *args: object) -> None:
        pass


class Switch:
    """Whether spans are made, in a file that another process can write to."""

    def __init__(self, path: Path) -> None:
        """Makes the file where it is missing; spans are made then."""
        if not path.exists():
            path.write_bytes(b"\1")
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    def set(self, traced: bool) -> None:
        """From the next call on."""
        self._byte[0] = int(traced)

    def either(self, traced: Callable[..., Any], untraced: Callable[..., Any]) -> Any:
        """Does the one or the other, whatever the switch says at the call."""

        def call(*args: Any, **options: Any) -> Any:
            return (traced if self._byte[0] else untraced)(*args, **options)

        return call


def main() -> None:
    """Puts the switch in, then runs the service named second with the flags after it."""
    switch, service = Switch(Path(sys.argv[1])), sys.argv[2]
    for module, name, untraced in (
        (tracing, "stage", _no_span),
        (tracing, "detached_stage", _no_span),
        (tracing, "server_span", _no_span),
        (tracing, "set_server_status", _nothing),
        (tracing, "set_outcome", _nothing),
        (tracing, "inject", _nothing),
        (tracing, "ClientSpan", _NoClientSpan),
        (telemetry, "recorded", _nothing),
    ):
        setattr(module, name, switch.either(getattr(module, name), untraced))
    sys.argv[1:] = sys.argv[3:]
    if service == "gateway":
        from gateway.middleware import observe

        for name, untraced in (("http_span", _no_span), ("end_span", _nothing)):
            setattr(observe, name, switch.either(getattr(observe, name), untraced))
    runpy.run_module(service, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
