"""Runs a service whose tracing can be switched off at run time, as the baseline of comparisons.

    python -m benchmarks.harness.untraced SWITCH gateway --listen 127.0.0.1:8080

SWITCH is a file of one byte. While it is 0 no spans are created. One process serves both modes,
because two processes of the same code differ by a few percent during their whole lifetime.
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


class NoClientSpan:
    """`tracing.ClientSpan` without a span."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.complete = False
        self.error: object = None
        self.span = INVALID_SPAN

    def end(self, error: BaseException | None) -> None:
        """Nothing to end."""

    def __enter__(self) -> NoClientSpan:
        return self

    def __exit__(self, *args: object) -> None:
        pass


class Switch:
    """The switch, in a file that another process maps and writes."""

    def __init__(self, path: Path) -> None:
        """Creates the file if it is missing, with tracing on."""
        if not path.exists():
            path.write_bytes(b"\1")
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    def set(self, traced: bool) -> None:
        """Switches tracing on or off, from the next call on."""
        self._byte[0] = int(traced)

    def either(self, traced: Callable[..., Any], untraced: Callable[..., Any]) -> Any:
        """A function that calls one of the two, depending on the switch."""

        def call(*args: Any, **options: Any) -> Any:
            return (traced if self._byte[0] else untraced)(*args, **options)

        return call


def main() -> None:
    """Patches the tracing functions, then runs the service with the remaining flags."""
    switch, service = Switch(Path(sys.argv[1])), sys.argv[2]
    for module, name, untraced in (
        (tracing, "stage", _no_span),
        (tracing, "detached_stage", _no_span),
        (tracing, "server_span", _no_span),
        (tracing, "set_server_status", _nothing),
        (tracing, "set_outcome", _nothing),
        (tracing, "inject", _nothing),
        (tracing, "ClientSpan", NoClientSpan),
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
